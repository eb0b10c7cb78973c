// Train sub-tab: progress, curves, previews, runs that were cut off.
(function () {
    "use strict";

    const { T, draw, ticks, byId, el, button, figure, url, get, post, number, inputValue, redraw, progress, isRunning, jobKey } = window.ddpm;

    const training = { model: "", curves: null, asked: 0, step: null, bandsOpen: false };

    draw.train = function (node, status) {
        const running = isRunning(status.jobs.train);
        const typed = inputValue("ddpm_train_model");
        const model = running || (status.jobs.train && !typed) ? status.jobs.train.subject : typed;
        // of one run only: what another one's training came to would stand above this one's curves
        const job = status.jobs.train && (status.jobs.train.subject === model || !typed) ? status.jobs.train : null;
        const now = Date.now();
        if (model && (model !== training.model || now - training.asked > (running ? 3000 : 15000) || (job && job.state !== training.state))) {
            training.asked = now;
            training.state = job && job.state;
            get("curves", { model }).then((found) => {
                if (model !== training.model) training.step = null;
                Object.assign(training, { model, curves: found });
            }).catch(() => { training.model = model; training.curves = null; });
        }
        const curves = training.model === model ? training.curves : null;
        redraw(node, [jobKey(job), model, curves && curves.model, curves && curves.train.length && curves.train[curves.train.length - 1], curves && curves.previews.length, training.step], () => {
            const parts = [];
            if (job) {
                const box = progress(job);
                const p = job.progress;
                if (p && p.loss !== undefined) {
                    box.append(el("div", "ddpm-line", figure(T("images/s"), p.images_per_second), figure(T("training loss"), number(p.loss)),
                        p.heldout_loss !== null ? figure(T("held-out loss"), number(p.heldout_loss)) : null,
                        p.heldout_step ? el("span", "", T("at step"), " ", p.heldout_step) : null));
                }
                const r = job.result;
                if (r && r.ended === "time") {
                    box.append(el("div", "ddpm-line", el("span", "", T("Stopped by the time limit at step")), el("strong", "", r.steps + (r.total < 1e9 ? " / " + r.total : ""))),
                        el("div", "ddpm-note", T("Resume training to continue, or generate with the model as it is.")));
                } else if (r && r.ended === "copying") {
                    box.append(el("div", "ddpm-line", el("strong", "", T("Stopped before it copies, at step")), el("strong", "", r.steps + (r.total < 1e9 ? " / " + r.total : ""))),
                        el("div", "ddpm-note", T("Longer training would make samples copies of its images. More images allow more training. To train on all the same, clear Stop before it copies in More settings and resume.")));
                } else if (r && r.ended === "forgetting") {
                    box.append(el("div", "ddpm-line", el("strong", "", T("Stopped before it forgets, at step")), el("strong", "", r.steps + (r.total < 1e9 ? " / " + r.total : ""))),
                        el("div", "ddpm-note", T("Longer training would cost what the model knows. To train on all the same, clear Stop before it copies in More settings and resume.")));
                } else if (r && r.ended === "stop") {
                    box.append(el("div", "ddpm-line", el("span", "", T("Stopped at step")), el("strong", "", r.steps + (r.total < 1e9 ? " / " + r.total : ""))),
                        el("div", "ddpm-note", T("Resume training to continue, or generate with the model as it is.")));
                }
                if (r && r.forgotten !== undefined) {
                    box.append(el("div", "ddpm-line", el("span", "", T("error on the model's own images, against before")), el("strong", "", (r.forgotten > 0 ? "+" : "") + (100 * r.forgotten).toFixed(1) + " %")));
                }
                if (job.state === "done") box.append(el("div", "ddpm-note", document.getElementById("txt2img_prompt")
                    ? T("Generate with it in the Generate tab, or tick DDPM in txt2img or img2img.") : T("Generate with it in the Generate tab.")));
                parts.push(box);
            }
            if (curves && curves.train.length) {
                const columns = el("div", "ddpm-columns");
                columns.append(chart(curves));
                if (curves.previews.length) columns.append(previews(curves));
                parts.push(columns);
                if (curves.bands && Object.keys(curves.bands.seen_bands).length > 1) parts.push(bands(curves.bands));
                parts.push(el("div", "ddpm-note", T("The coloured curves compare training images with held-out ones. While both fall, the model learns; if held-out rises while training still falls, it memorises: stop there. The grey curve is the loss of single batches.")));
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
        const least = Math.min(...all), most = Math.max(...all), middle = Math.sqrt(least * most);
        // at least a factor of two from bottom to top: two points that hardly differ are no cliff
        const low = Math.log(Math.min(least, middle / Math.SQRT2)), high = Math.log(Math.max(most, middle * Math.SQRT2));
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
            if (points.length < 3) for (const p of points) add("circle", { cx: X(p[0]).toFixed(1), cy: Y(p[1]).toFixed(1), r: 3, class: "ddpm-" + name });
            if (points.length > 1) add("polyline", { points: points.map((p) => X(p[0]).toFixed(1) + "," + Y(p[1]).toFixed(1)).join(" "), class: "ddpm-curve ddpm-" + name });
        }
        const legend = el("div", "ddpm-line ddpm-legend", el("span", "ddpm-key-train", T("single batches")), curves.seen.length ? el("span", "ddpm-key-seen", T("training images")) : null,
            curves.heldout.length ? el("span", "ddpm-key-heldout", T("held-out images")) : null);
        return el("div", "ddpm-chartbox", svg, legend);
    }

    /** Loss by timestep: low timesteps are fine detail, high ones layout. */
    function bands(line) {
        const table = el("table", "ddpm-bands");
        const names = Object.keys(line.seen_bands);
        table.append(el("tr", "", el("th", "", T("Timesteps")), ...names.map((name) => el("th", "", name))));
        table.append(el("tr", "", el("td", "", T("Training image loss")), ...names.map((name) => el("td", "", number(line.seen_bands[name])))));
        if (line.bands) table.append(el("tr", "", el("td", "", T("Held-out loss")), ...names.map((name) => el("td", "", number(line.bands[name])))));
        const box = el("details", "ddpm-details", el("summary", "", T("Loss by timestep")), table, el("div", "ddpm-note", T("Low timesteps have little noise: the network learns fine detail there, and memorisation shows there first, as a gap between the rows. High timesteps have much noise: the network learns the layout there.")));
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
        slider.setAttribute("aria-label", T("Step of the preview"));
        slider.type = "range"; slider.min = 0; slider.max = steps.length - 1; slider.value = index;
        slider.addEventListener("input", () => {
            training.step = Number(slider.value) === steps.length - 1 ? null : Number(slider.value);
            image.src = url("preview", { model: curves.model, step: steps[slider.value] });
            label.textContent = T("at step") + " " + steps[slider.value];
        });
        return el("div", "ddpm-previewbox", el("div", "ddpm-line", el("span", "", T("Preview (fixed noise)")), label), image, slider);
    }

    draw.unfinished = function (node, status) {
        const runs = status.unfinished.filter((run) => run.state === "running");
        const waiting = status.waiting || [];
        redraw(node, [runs, waiting], () => waiting.map((one) => {
            const box = el("div", "ddpm-note ddpm-unfinished", el("span", "", T("Waiting to be trained:")), " ", el("strong", "", one.subject), " ");
            box.append(button(T("Cancel"), async () => {
                try { await post("cancel", { job: one.job }); } catch (error) { box.append(el("div", "ddpm-failure", error.message)); }
            }));
            return box;
        }).concat(runs.map((run) => {
            const box = el("div", "ddpm-note ddpm-unfinished", el("span", "", T("Training of")), " ", el("strong", "", run.name), " ",
                el("span", "", T("was interrupted; saved up to step")), " ", el("strong", "", run.step), " ");
            box.append(button(T("Resume"), async () => {
                try { await post("resume", { model: run.name }); } catch (error) { box.append(el("div", "ddpm-failure", error.message)); }
            }));
            return box;
        })));
    };

    // -- the time limit stays as it was typed, also when the page is loaded anew -------------------------------------------

    const KEPT = "ddpm_train_minutes";
    let restored = false;
    ticks.push(() => {
        const field = byId(KEPT) && byId(KEPT).querySelector("input");
        if (!field) return;
        if (!restored) {
            restored = true;
            const before = window.localStorage.getItem(KEPT);
            if (before !== null && before !== field.value && Number(field.value) === 0) {
                field.value = before;
                field.dispatchEvent(new Event("input", { bubbles: true }));
                field.dispatchEvent(new Event("change", { bubbles: true }));
            }
            field.addEventListener("input", () => window.localStorage.setItem(KEPT, field.value));
        }
    });
})();
