// Deleting: datasets and models go to a trash inside the workspace, come back from it, and leave it only on request.
(function () {
    "use strict";

    const { T, draw, el, button, post, inputValue, redraw } = window.ddpm;

    const AGAIN = 3000; // ms in which a second press is taken for the first

    function act(node, name, values, done) {
        const pressed = JSON.stringify([name, values]);
        if (node.dataset.pressed === pressed && Date.now() - node.dataset.pressedAt < AGAIN) return;
        Object.assign(node.dataset, { pressed, pressedAt: Date.now(), message: "", done: "" });
        post(name, values).then(() => { node.dataset.done = done; delete node.dataset.key; }, (error) => {
            node.dataset.message = error.message;
            delete node.dataset.pressed;
            delete node.dataset.key;
        });
    }

    /** One place for each kind: a button for what is chosen above, and what lies in the trash. */
    function trash(kind, chosen, texts) {
        return function (node, status) {
            const lying = (status.trash || []).filter((entry) => entry.kind === kind);
            const there = kind === "dataset" ? status.datasets : status.models;
            const name = inputValue(chosen);
            redraw(node, [lying, (status.trash || []).length, there.includes(name) ? name : "", node.dataset.message, node.dataset.done], () => {
                const parts = [];
                const first = el("div", "ddpm-line");
                if (there.includes(name)) first.append(button(texts.remove, () => act(node, "delete", { kind, name }, "")), el("strong", "", name));
                else first.append(el("span", "", texts.choose));
                parts.push(first, el("div", "ddpm-note", texts.what));
                if (node.dataset.message) parts.push(el("div", "ddpm-failure", node.dataset.message));
                if (node.dataset.done) parts.push(el("div", "ddpm-line", el("span", "", T("It is back, and can be chosen above:")), el("strong", "", node.dataset.done)));
                for (const entry of lying) {
                    parts.push(el("div", "ddpm-line", button(T("Restore"), () => act(node, "restore", { place: entry.place }, entry.name)), el("strong", "", entry.name),
                        el("span", "", new Date(1000 * entry.when).toLocaleString())));
                }
                if ((status.trash || []).length) {
                    parts.push(el("div", "ddpm-line", button(T("Empty the trash"), () => {
                        if (window.confirm(T("Delete everything in the trash for good, datasets and models? This cannot be undone."))) act(node, "empty_trash", {}, "");
                    }), el("span", "", el("span", "", T("things in the trash, of both kinds:")), " ", String((status.trash || []).length))));
                }
                return parts;
            });
        };
    }

    draw.trash_dataset = trash("dataset", "ddpm_dataset_name", {
        remove: T("Move this dataset to the trash"), choose: T("Choose a dataset above to delete it."),
        what: T("The harvested pictures themselves stay where they are; only the dataset's copies and decisions go, and come back with Restore."),
    });
    draw.trash_model = trash("model", "ddpm_model", {
        remove: T("Move this model to the trash"), choose: T("Choose a model above to delete it."),
        what: T("The model goes with its training, so that Restore brings back both. Pictures made with it stay."),
    });
})();
