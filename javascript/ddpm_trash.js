// Deleting: datasets and models go to a trash inside the workspace, come back from it, and leave it only on request.
(function () {
    "use strict";

    const { T, draw, root, el, button, url, post, inputValue, redraw } = window.ddpm;

    const AGAIN = 3000; // ms in which a second press is taken for the first

    const CHOSEN = { dataset: ["ddpm_dataset_name", "ddpm_train_dataset"], model: ["ddpm_model", "ddpm_train_model"] };

    /** Write a value into one of gradio's dropdowns, as if a person had typed it. */
    function choose(id, value) {
        const field = root().querySelector("#" + id + " input");
        if (!field) return;
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(field, value);
        for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, { bubbles: true }));
        field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
        field.dispatchEvent(new Event("blur", { bubbles: true }));
    }

    function act(node, name, values, done, then) {
        const pressed = JSON.stringify([name, values]);
        if (node.dataset.pressed === pressed && Date.now() - node.dataset.pressedAt < AGAIN) return;
        Object.assign(node.dataset, { pressed, pressedAt: Date.now(), message: "", done: "" });
        post(name, values).then((answer) => { node.dataset.done = done || answer.name || answer.dataset || ""; delete node.dataset.key; if (then) then(answer); }, (error) => {
            node.dataset.message = error.message;
            delete node.dataset.pressed;
            delete node.dataset.key;
        });
    }

    /** A new name; of datasets, another one to add; of models, a folder for diffusers. */
    function manage(node, kind, name, there, plain) {
        const field = el("input", "ddpm-name");
        field.value = node.dataset.typed || ""; // as it was, when this is drawn anew
        field.addEventListener("input", () => { node.dataset.typed = field.value; });
        field.placeholder = T("New name"); field.setAttribute("aria-label", T("New name"));
        const rename = el("div", "ddpm-line", field, button(T("Rename"), () => act(node, "rename", { kind, name, new: field.value }, "", (answer) => {
            node.dataset.typed = "";
            for (const id of CHOSEN[kind]) if (inputValue(id) === name) choose(id, answer.name);
        })));
        if (kind === "model" && plain) {
            const link = el("a", "ddpm-button", T("Download for diffusers"));
            link.href = url("export", { model: name }); link.download = "";
            return [rename, el("div", "ddpm-line", link)];
        }
        if (kind === "model") return [rename];
        const others = there.filter((one) => one !== name);
        if (!others.length) return [rename];
        const select = el("select", "ddpm-select", ...others.map((one) => { const option = el("option", "", one); option.value = one; return option; }));
        select.setAttribute("aria-label", T("Dataset"));
        return [rename, el("div", "ddpm-line", el("span", "", T("Add the images of")), select, button(T("Merge"), () => act(node, "merge", { into: name, dataset: select.value }, "")))];
    }

    /** Upscalers and adapters, which no list of models has; nothing chosen: the model above. */
    function other(node, names, chosen) {
        const select = el("select", "ddpm-select", ...["", ...names].map((one) => { const option = el("option", "", one); option.value = one; return option; }));
        select.setAttribute("aria-label", T("Upscaler or adapter"));
        select.value = names.includes(node.dataset.other) ? node.dataset.other : "";
        select.addEventListener("change", () => { node.dataset.other = select.value; chosen(); });
        return select;
    }

    /** One place for each kind: a button for what is chosen above, and what lies in the trash. */
    function trash(kind, chosen, texts) {
        return function drawn(node, status) {
            const lying = (status.trash || []).filter((entry) => entry.kind === kind);
            const more = kind === "dataset" ? [] : [...status.upscalers.map((entry) => entry.replace(/^DDPM: /, "")), ...status.adapters];
            const there = kind === "dataset" ? status.datasets : [...status.models, ...more];
            const name = more.includes(node.dataset.other) ? node.dataset.other : inputValue(chosen);
            redraw(node, [lying, (status.trash || []).length, there, there.includes(name) ? name : "", node.dataset.message, node.dataset.done], () => {
                const parts = [];
                if (more.length) parts.push(el("div", "ddpm-line", el("span", "", T("Upscaler or adapter")), other(node, more, () => drawn(node, status))));
                if (there.includes(name)) {
                    parts.push(el("div", "ddpm-line", el("strong", "", name)), ...manage(node, kind, name, there, !more.includes(name)));
                    parts.push(el("div", "ddpm-line", button(texts.remove, () => act(node, "delete", { kind, name }, ""))));
                } else parts.push(el("div", "ddpm-line", el("span", "", texts.choose)));
                parts.push(el("div", "ddpm-note", texts.what));
                if (node.dataset.message) parts.push(el("div", "ddpm-failure", node.dataset.message));
                if (node.dataset.done) parts.push(el("div", "ddpm-line", el("span", "", T("Done:")), el("strong", "", node.dataset.done)));
                for (const entry of lying) {
                    parts.push(el("div", "ddpm-line", button(T("Restore"), () => act(node, "restore", { place: entry.place }, entry.name)), el("strong", "", entry.name),
                        el("span", "", new Date(1000 * entry.when).toLocaleString())));
                }
                if ((status.trash || []).length) {
                    parts.push(el("div", "ddpm-line", button(T("Empty trash"), () => {
                        if (window.confirm(T("Delete all items in the trash (datasets and models)? This cannot be undone."))) act(node, "empty_trash", {}, "");
                    }), el("span", "", el("span", "", T("items in the trash:")), " ", String((status.trash || []).length))));
                }
                return parts;
            });
        };
    }

    draw.trash_dataset = trash("dataset", "ddpm_dataset_name", {
        remove: T("Move to trash"), choose: T("Choose a dataset above."),
        what: T("Your own images stay where they are. Only the dataset's copies and decisions are moved; Restore brings them back."),
    });
    draw.trash_model = trash("model", "ddpm_model", {
        remove: T("Move to trash"), choose: T("Choose a model above."),
        what: T("The model is moved with its training run; Restore brings back both. Images generated with it stay."),
    });
})();
