// The words of a dataset's prompts: which a new model learns, which are left out, which are one.
(function () {
    "use strict";

    const { T, draw, root, el, button, figure, get, post, inputValue } = window.ddpm;
    const PATIENCE = 15000; // between two looks at a dataset that grows: all its prompts are read
    const panel = { read: 0, dataset: null, version: "", found: null, error: "", marked: new Set(), busy: false };

    /** Whether somebody can see it: it is worked out from all prompts, and not asked for before. */
    const seen = (node) => node.offsetParent !== null;

    async function load(dataset) {
        panel.busy = true;
        panel.error = "";
        try { panel.found = await get("words", { dataset }); } catch (error) { panel.found = null; panel.error = error.message; }
        panel.busy = false;
        show();
    }

    async function change(action, words) {
        if (panel.busy) return; // one choice after the other
        const dataset = panel.dataset;
        panel.busy = true;
        panel.error = "";
        try {
            const found = await post("words", { dataset, action, words });
            if (panel.dataset === dataset) { panel.found = found; panel.marked.clear(); }
            if (action === "undo") window.ddpm.reviewAgain(); // it may have been an edit of an image that is shown
        } catch (error) { panel.error = error.message; }
        panel.busy = false;
        show();
    }

    function chip(one, left_out) {
        const name = one.word.split(" | ").join(" = ");
        const node = button("", (event) => {
            if (left_out) change("keep", [one.word]);
            else if (event.ctrlKey || event.metaKey || event.shiftKey) {
                if (!panel.marked.delete(one.word)) panel.marked.add(one.word);
                show();
            } else change("drop", [one.word]);
        }, left_out ? T("Click to take this word") : T("Click to leave this word out; Ctrl+click to select words that mean the same"));
        node.append(el("span", "", name), " ", el("span", "ddpm-dim", one.count));
        node.classList.add("ddpm-word");
        node.setAttribute("aria-pressed", String(!left_out));
        if (panel.marked.has(one.word)) node.classList.add("ddpm-chosen");
        return node;
    }

    function build() {
        const parts = [];
        if (panel.error) parts.push(el("div", "ddpm-failure", panel.error));
        const r = panel.found;
        if (!r) return parts.length ? parts : [el("div", "ddpm-empty", panel.dataset ? T("Loading") : T("No images yet. Harvest a folder first."))];
        const enough = r.tags.length >= 4;
        parts.push(el("div", "ddpm-note", r.tags.length
            ? T("A new model learns these words from the prompts, and can be asked for them. Click a word to leave it out.")
            : T("The prompts share no words that a model could learn: it will be trained without prompts.")));
        if (r.tags.length && !enough) parts.push(el("div", "ddpm-note", T("With fewer than four words a new model is trained without prompts, unless you choose tags under Prompts in the Train tab.")));
        const bar = el("div", "ddpm-toolbar");
        if (panel.marked.size > 1) bar.append(button(T("Make the selected words one"), () => change("merge", [...panel.marked])));
        bar.append(button(T("Undo"), () => change("undo", [])));
        parts.push(bar, el("div", "ddpm-words", ...r.tags.map((one) => chip(one, false))));
        if (r.tags.length) {
            parts.push(el("div", "ddpm-line", figure(T("words"), r.tags.length), figure(T("images"), r.pictures), figure(T("are the only ones with their words"), r.unique)));
            parts.push(el("div", "ddpm-note", T("An image that is the only one with its words can be asked for by them. To prevent copies, training leaves words out at random; Evaluate says whether words unlock copies.")));
        }
        if (r.left_out.length) parts.push(el("details", "ddpm-details", el("summary", "", T("Words that are left out")), el("div", "ddpm-words", ...r.left_out.map((one) => chip(one, true)))));
        return parts;
    }

    function show() {
        const open = new Set();
        for (const node of root().querySelectorAll("[data-ddpm=words]")) {
            if (node.querySelector("details[open]")) open.add(node);
            node.replaceChildren(...build());
            if (open.has(node)) node.querySelectorAll("details").forEach((part) => { part.open = true; });
        }
    }

    draw.words = function (node, status) {
        if (!node.firstChild) node.append(el("div", "ddpm-empty", T("Loading"))); // what is empty is hidden, and cannot be seen
        if (!seen(node)) return;
        const name = inputValue("ddpm_dataset_name");
        const dataset = status.datasets.includes(name) ? name : null;
        // decisions and harvests change what the prompts share
        const harvest = status.jobs.harvest;
        const version = [dataset, harvest && harvest.id + harvest.state, status.collecting.collected, window.ddpm.edits].join();
        const other = dataset !== panel.dataset;
        const edited = panel.edits !== window.ddpm.edits; // by a person, who looks at once
        panel.edits = window.ddpm.edits;
        if (version === panel.version || panel.busy || (!other && !edited && Date.now() - panel.read < PATIENCE)) return;
        if (other) { panel.found = null; panel.marked.clear(); } // else what is shown stays until the answer comes
        Object.assign(panel, { dataset, version, error: "", read: Date.now() });
        show();
        if (dataset) load(dataset);
    };
})();
