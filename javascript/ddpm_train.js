// Train sub-tab: progress, curves, previews, runs that were cut off.
(function () {
    "use strict";

    const { T, draw, el, button, figure, url, get, post, number, inputValue, redraw, progress, isRunning, jobKey } = window.ddpm;

    const training = { model: "", curves: null, asked: 0, step: null, bandsOpen: false };

    draw.train = function (node, status) {
        const job = status.jobs.train;
        const running = isRunning(job);
        const typed = inputValue("ddpm_train_model");
        const model = running || (job && !typed) ? job.subject : typed;
        const now = Date.now();
        if (model && (model !== training.model || now - training.asked > (running ? 3000 : 15000) || (job && job.state !== training.state))) {
            training.asked = now;
            training.state = job && job.state;
            get("curves", { model }).then((found) => {
                if (model !== training.model) training.step = null;
                Object.assign(training, { model, curves: found });
            }).catch(() => { training.model = model; training.curves = null; });
        }
        const curves = training.curves;
        redraw(node, [jobKey(job), curves && curves.model, curves && curves.train.length && curves.train[curves.train.length - 1], curves && curves.previews.length, training.step], () => {
            const parts = [];
            if (job) {
                const box = progress(job);
                const p = job.progress;
                if (p && p.loss !== undefined) {
                    box.append(el("div", "ddpm-line", figure(T("images/s"), p.images_per_second), figure(T("training loss"), number(p.loss)),
                        p.heldout_loss !== null ? figure(T("held-out loss"), number(p.heldout_loss)) : null,
                        p.heldout_step ? el("span", "", T("at step"), " ", p.heldout_step) : null));
                }
                parts.push(box);
            }
            if (curves && curves.train.length) {
                const columns = el("div", "ddpm-columns");
                columns.append(chart(curves));
                if (curves.previews.length) columns.append(previews(curves));
                parts.push(columns);
                if (curves.bands) parts.push(bands(curves.bands));
                parts.push(el("div", "ddpm-note", T("While both losses fall the model learns. When the held-out loss rises and the loss on seen pictures goes on falling, it begins to copy: stop there.")));
            }
            for (const text of (curves && curves.notes) || []) parts.push(el("div", "ddpm-note", text));
            return parts;
        });
    };

    function chart(curves) {
        const W = 520, H = 220, L = 46, B = 24, TOP = 8, R = 8;
        const NS = "http://www.w3.org/2000/svg";
        const svg = document.createElementNS(NS, "svg");
        svg.setAttribute("viewBox", "0 0 " + W + " " + H);
        svg.setAttribute("class", "ddpm-chart");
        const all = [...curves.train, ...curves.heldout, ...curves.seen].map((p) => p[1]).filter((v) => v > 0);
        const low = Math.log(Math.min(...all)), high = Math.log(Math.max(...all)) + 1e-6;
        const last = Math.max(...curves.train.map((p) => p[0]), 1);
        const X = (s) => L + (W - L - R) * s / last;
        const Y = (v) => TOP + (H - TOP - B) * (high - Math.log(Math.max(v, 1e-9))) / Math.max(high - low, 1e-6);
        const add = (tag, attributes, text) => {
            const node = document.createElementNS(NS, tag);
            for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
            if (text !== undefined) node.textContent = text;
            svg.append(node);
        };
        for (let i = 0; i <= 3; i++) {
            const value = Math.exp(low + (high - low) * i / 3);
            add("line", { x1: L, x2: W - R, y1: Y(value), y2: Y(value), class: "ddpm-rule" });
            add("text", { x: L - 6, y: Y(value) + 4, "text-anchor": "end" }, value.toPrecision(2));
        }
        add("text", { x: L, y: H - 6 }, "0");
        add("text", { x: W - R, y: H - 6, "text-anchor": "end" }, T("at step") + " " + last);
        for (const [name, points] of [["train", curves.train], ["seen", curves.seen], ["heldout", curves.heldout]]) {
            if (points.length) add("polyline", { points: points.map((p) => X(p[0]).toFixed(1) + "," + Y(p[1]).toFixed(1)).join(" "), class: "ddpm-curve ddpm-" + name });
        }
        const legend = el("div", "ddpm-line ddpm-legend", el("span", "ddpm-key-train", T("training loss")), curves.seen.length ? el("span", "ddpm-key-seen", T("on seen pictures, averaged weights")) : null,
            curves.heldout.length ? el("span", "ddpm-key-heldout", T("on held-out pictures")) : null);
        return el("div", "ddpm-chartbox", svg, legend);
    }

    /** Loss by timestep: low timesteps are fine detail, high ones layout. */
    function bands(line) {
        const table = el("table", "ddpm-bands");
        const names = Object.keys(line.seen_bands);
        table.append(el("tr", "", el("th", "", T("Timesteps")), ...names.map((name) => el("th", "", name))));
        table.append(el("tr", "", el("td", "", T("Loss on seen pictures")), ...names.map((name) => el("td", "", number(line.seen_bands[name])))));
        if (line.bands) table.append(el("tr", "", el("td", "", T("Loss on held-out pictures")), ...names.map((name) => el("td", "", number(line.bands[name])))));
        const box = el("details", "ddpm-details", el("summary", "", T("Loss by timestep")), table, el("div", "ddpm-note", T("Low timesteps are little noise: there the network learns fine detail, and there a gap between the rows shows first when it begins to copy. High timesteps are much noise: there it learns the layout.")));
        box.open = training.bandsOpen; // drawn anew at every step, it stays as the person left it
        box.addEventListener("toggle", () => { training.bandsOpen = box.open; });
        return box;
    }

    function previews(curves) {
        const steps = curves.previews;
        const index = training.step === null ? steps.length - 1 : Math.min(training.step, steps.length - 1);
        const image = el("img", "ddpm-strip");
        const label = el("span", "", T("at step") + " " + steps[index]);
        image.alt = "preview";
        image.src = url("preview", { model: curves.model, step: steps[index] });
        const slider = el("input");
        slider.type = "range"; slider.min = 0; slider.max = steps.length - 1; slider.value = index;
        slider.addEventListener("input", () => {
            training.step = Number(slider.value) === steps.length - 1 ? null : Number(slider.value);
            image.src = url("preview", { model: curves.model, step: steps[slider.value] });
            label.textContent = T("at step") + " " + steps[slider.value];
        });
        return el("div", "ddpm-previewbox", el("div", "ddpm-line", el("span", "", T("The same noise, denoised")), label), image, slider);
    }

    draw.unfinished = function (node, status) {
        const runs = status.unfinished.filter((run) => run.state === "running");
        redraw(node, runs, () => runs.map((run) => {
            const box = el("div", "ddpm-note ddpm-unfinished", el("span", "", T("Training of")), " ", el("strong", "", run.name), " ",
                el("span", "", T("was cut off; it is saved up to step")), " ", el("strong", "", run.step), " ");
            box.append(button(T("Go on"), async () => {
                try { await post("resume", { model: run.name }); } catch (error) { box.append(el("div", "ddpm-failure", error.message)); }
            }));
            return box;
        }));
    };
})();
