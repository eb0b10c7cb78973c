// Generate sub-tab: the picture as it emerges, the results, and whether the model learned or copied.
(function () {
    "use strict";

    const { T, draw, root, byId, el, button, figure, get, url, number, inputValue, redraw, progress, jobKey } = window.ddpm;
    let shownSample = null;
    window.ddpm.shown = () => shownSample; // the job whose results the gallery shows

    draw.sample = function (node, status) {
        const job = status.jobs.sample;
        redraw(node, jobKey(job), () => {
            if (!job) return [];
            const box = progress(job);
            if (job.state === "running" && job.progress.done) {
                const image = el("img", "ddpm-emerging");
                image.alt = "emerging"; image.src = url("emerging", { job: job.id, n: job.progress.done });
                box.append(image);
            }
            return box;
        });
        const ended = job && job.result && job.result.count;
        const show = byId("ddpm_show_results");
        if (ended && show && shownSample !== job.id) {
            shownSample = job.id;
            show.click();
        }
    };

    draw.animation = function (node, status) {
        const job = status.jobs.sample;
        const ready = job && job.result && job.result.count;
        redraw(node, ready ? job.id : null, () => {
            if (!ready) return [];
            const image = el("img", "ddpm-animation");
            image.alt = "denoising"; image.loading = "lazy"; image.src = url("animation", { job: job.id });
            if (job.result.between) {
                const there = el("details", "ddpm-details", el("summary", "", T("Animation")), image);
                there.open = true;
                return there;
            }
            const box = el("details", "ddpm-details", el("summary", "", T("Denoising")), image,
                el("div", "ddpm-note", T("The network's estimate of the image at each step: first the mean of everything it has seen, then the layout, then the detail.")));
            return box;
        });
    };

    // -- the words that the chosen model knows: a click writes one into the prompt or takes it out again --------------------

    const known = { model: null, words: [], encoder: "", error: "" };

    async function askWords(model) {
        const found = { words: [], encoder: "", error: "" };
        Object.assign(known, { model, ...found });
        try { Object.assign(found, await get("model_words", { model })); } catch (failed) { found.error = failed.message; }
        if (known.model === model) Object.assign(known, found); // another may have been chosen meanwhile
    }

    const promptField = () => root().querySelector("#ddpm_prompt textarea, #ddpm_prompt input");
    const pieces = (text) => text.split(",").map((piece) => piece.trim()).filter(Boolean);
    const ROOM = 24; // words shown at once

    function write(text) {
        const field = promptField();
        field.value = text;
        field.dispatchEvent(new Event("input", { bubbles: true }));
        field.focus();
    }

    function toggleWord(word) {
        const there = pieces(promptField().value);
        const at = there.indexOf(word);
        if (at >= 0) { there.splice(at, 1); write(there.join(", ")); return; }
        // what is just being typed is completed
        const last = there[there.length - 1] || "";
        if (last && word.includes(last.toLowerCase()) && !known.words.some((entry) => entry.split(" | ").includes(last))) there.pop();
        write([...there, word].join(", "));
    }

    draw.model_words = function (node, status) {
        const model = inputValue("ddpm_model");
        if (model !== known.model) {
            if (status.models.includes(model)) askWords(model);
            else Object.assign(known, { model: null, words: [], encoder: "", error: "" });
        }
        const field = promptField();
        const text = field ? field.value : "";
        const there = pieces(text);
        const typed = text.trim().endsWith(",") ? "" : (there[there.length - 1] || "").toLowerCase();
        const names = known.words.map((entry) => entry.split(" | ")[0].replace(/[\\()[\]]/g, "\\$&")); // brackets are emphasis
        const fitting = typed && !names.includes(typed) ? names.filter((word) => word.includes(typed)) : names;
        const offered = (fitting.length ? fitting : names).slice(0, ROOM);
        redraw(node, [model, known.words.length, known.encoder, known.error, offered, there], () => {
            if (known.error) return el("div", "ddpm-failure", known.error);
            if (!known.model) return [];
            if (known.encoder) return el("div", "ddpm-note", el("span", "", T("It reads whole prompts with the text encoder of the checkpoint")), " ", el("strong", "", known.encoder));
            if (!names.length) return el("div", "ddpm-note", T("This model was trained without prompts; a prompt changes nothing."));
            const chips = offered.map((word) => {
                const chip = button(word, () => toggleWord(word));
                chip.classList.add("ddpm-word");
                chip.setAttribute("aria-pressed", String(there.includes(word)));
                return chip;
            });
            const more = names.length - offered.length;
            return el("div", "ddpm-words", el("span", "ddpm-dim", T("It knows these words:")), ...chips,
                more > 0 ? el("span", "ddpm-dim", "+ " + more + " ", el("span", "", T("more; type to find them"))) : null);
        });
    };

    draw.evaluate = function (node, status) {
        const job = status.jobs.evaluate;
        redraw(node, jobKey(job), () => {
            if (!job) return [];
            const box = progress(job);
            const r = job.result;
            if (r && r.upscaler) {
                const above = (value) => Math.max(0, value - r.detail_kid_floor);
                const share = above(r.detail_kid) / Math.max(1e-6, above(r.detail_kid_lanczos));
                box.append(el("div", "ddpm-line", figure(T("detail KID"), number(r.detail_kid)), figure(T("95 % interval"), number(r.detail_kid_low) + " – " + number(r.detail_kid_high)),
                    figure("Lanczos", number(r.detail_kid_lanczos)), figure(T("real vs. real"), number(r.detail_kid_floor))));
                box.append(el("div", "ddpm-line", figure(T("agreement"), r.consistency_db + " dB"), figure(T("fine detail"), Math.round(100 * r.spectrum_ratio) + " %"),
                    figure(T("colour drift"), r.colour_drift + " / 255"), figure(T("between seeds"), r.diversity + " / 255")));
                box.append(el("div", "ddpm-line", el("span", "", T("Compared with dataset")), el("strong", "", r.dataset), el("strong", "", share < 0.1 ? T("Its detail is like that of real images.")
                    : share < 0.5 ? T("Its detail is better than plain enlarging, not yet like that of real images.") : T("Its detail is hardly better than plain enlarging: keep training."))));
                box.append(el("div", "ddpm-note", T("Images that it has not seen are shrunk and enlarged again. Detail KID compares small pieces with pieces of other real images: the closer to real vs. real, the better. Agreement says how exactly the result shrinks to the small image, fine detail how much of the real images' there is, between seeds how much is invented. Below, from the top: small, Lanczos, the upscaler, real.")));
            } else if (r) {
                const copied = Math.round(1000 * r.memorised) / 10;
                box.append(el("div", "ddpm-line", figure(T("KID"), number(r.kid)), figure(T("95 % interval"), number(r.kid_low) + " – " + number(r.kid_high)),
                    figure(T("real vs. real"), number(r.floor)), figure(T("memorised"), copied + " %")));
                box.append(el("div", "ddpm-line", el("span", "", T("Compared with dataset")), el("strong", "", r.dataset)));
                const memorised = r.memorised > 0.05 ? T("It memorised some of its training images.")
                    : r.own_images || r.learned_from === r.dataset ? T("It did not memorise its training images.") : T("Nothing here is memorised, but these are not the images it was trained on.");
                if (r.learned_from && r.learned_from !== r.dataset) box.append(el("div", "ddpm-failure", el("span", "", T("This model was trained on another dataset:")), " ", el("strong", "", r.learned_from)));
                if (r.learned_from === r.dataset && !r.own_images) box.append(el("div", "ddpm-note", T("The dataset has changed since this model was trained.")));
                box.append(el("div", "ddpm-line", el("strong", "", memorised),
                    el("strong", "", r.kid < 0.15 ? T("Its images come close to the dataset.") : r.kid < 1 ? T("Its images are recognisable, but not yet close to the dataset.")
                        : T("Its images are far from the dataset: keep training.")), el("span", "", r.count, " ", el("span", "", T("images compared")))));
                box.append(el("div", "ddpm-note", T("KID measures the distance to the dataset (on random convolution features): the closer to real vs. real, the better. An image counts as memorised if it is at least three times closer to one training image than to any other. Below: generated images above their nearest training images, the closest first.")));
                if (r.verdict) {
                    box.append(el("div", "ddpm-line", el("strong", "", r.verdict)));
                    const shares = Object.entries(r.alignment).sort((a, b) => b[1] - a[1]);
                    if (shares.length) {
                        const bars = shares.map(([word, share]) => {
                            const bar = el("div", "ddpm-share", el("span", "", word.split(" | ")[0]), el("span", "ddpm-dim", Math.round(100 * share) + " %"));
                            bar.style.setProperty("--share", Math.round(100 * share) + "%");
                            return bar;
                        });
                        box.append(el("details", "ddpm-details", el("summary", "", T("How often each word is shown")), el("div", "ddpm-shares", ...bars),
                            el("div", "ddpm-note", T("Of the images asked for a word, the share that shows it, judged by a classifier trained on the dataset. Words that the classifier cannot tell are left out."))));
                    }
                }
            }
            if (r) {
                const image = el("img", "ddpm-neighbours");
                image.alt = "neighbours"; image.src = url("neighbours", { job: job.id });
                box.append(image);
            }
            return box;
        });
    };
})();
