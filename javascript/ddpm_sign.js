// A sign beside the WebUI's own results while what it generates is collected, with a switch.
(function () {
    "use strict";

    const { T, ticks, byId, el, post } = window.ddpm;
    const PLACES = ["txt2img_results", "img2img_results"];

    ticks.push((status) => {
        for (const place of PLACES) {
            const results = byId(place);
            if (!results) continue;
            let sign = results.querySelector(":scope > .ddpm-sign");
            const { enabled, dataset } = status.collecting;
            if (!enabled) { if (sign) sign.remove(); continue; }
            const key = dataset;
            if (sign && sign.dataset.key === key) continue;
            if (sign) sign.remove();
            const stop = el("button", "", T("Stop collecting"));
            stop.type = "button";
            sign = el("div", "ddpm-sign", el("span", "", T("Collecting into")), el("strong", "", dataset), stop);
            sign.dataset.key = key;
            stop.addEventListener("click", async () => {
                try { await post("collecting", { enabled: false }); sign.remove(); } catch (error) { sign.append(el("span", "", error.message)); }
            });
            results.prepend(sign);
        }
    });
})();
