// A card of one of our models was clicked: take that model for the pictures beside txt2img's or img2img's own. Cards of adapters are the host's own to click.
(function () {
    "use strict";

    const { root, byId, ticks } = window.ddpm;
    const asked = {}; // tab -> the models for which its cards were last made anew

    // the host makes its cards once, at the first page: a model trained since would be missing
    ticks.push((status) => {
        const wanted = [...status.models, ...status.adapters].sort().join("\n");
        for (const tab of ["txt2img", "img2img"]) {
            const cards = byId(tab + "_ddpm_cards");
            if (!cards || cards.offsetParent === null || asked[tab] === wanted) continue;
            const shown = [...cards.querySelectorAll(".card")].map((card) => card.dataset.name).sort().join("\n");
            const refresh = byId(tab + "_ddpm_extra_refresh_internal");
            asked[tab] = wanted;
            if (shown !== wanted && refresh) refresh.click();
        }
    });

    window.ddpm.takeCard = function (card, name) {
        const tab = card.closest("#tab_img2img") ? "img2img" : "txt2img";
        const field = root().querySelector("#" + tab + "_ddpm_card textarea, #" + tab + "_ddpm_card input");
        const take = byId(tab + "_ddpm_card_take");
        if (!field || !take) return;
        field.value = name;
        field.dispatchEvent(new Event("input", { bubbles: true }));
        // the page takes note of the name a moment later
        window.setTimeout(() => take.click(), 100);
        const generation = root().querySelector("#" + tab + "_extra_tabs button"); // the first of them
        if (generation) generation.click();
        window.setTimeout(() => {
            const accordion = root().querySelector("[id^=script_" + tab + "_ddpm_enable]");
            if (accordion) accordion.scrollIntoView({ block: "nearest" });
        }, 800);
    };
})();
