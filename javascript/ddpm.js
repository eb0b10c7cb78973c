// The live parts of the DDPM tab. The server holds all state; this draws it, so a reload, a second page or a lost
// connection changes nothing. Plain script: the WebUI loads every file of this folder; the standalone page loads it too.
(function () {
    "use strict";

    const BASE = "/ddpm/ui/";
    const PAGE_SIZE = 60;
    const REASONS = {
        undecodable: "not readable", too_small: "too small", extreme_aspect: "too long and narrow", bomb: "too large",
        blank: "blank", noise: "noise", duplicate: "exact duplicate", user: "rejected by you",
    };
    let status = null;
    let connected = true;
    let lists = "";
    let shownSample = null;

    const root = () => (typeof window.gradioApp === "function" ? window.gradioApp() : document);
    const byId = (id) => root().querySelector("#" + id);

    // -- small helpers: text always goes in as text, never as markup ---------------------------------------------------

    function el(tag, className, ...children) {
        const node = document.createElement(tag);
        if (className) node.className = className;
        for (const child of children) {
            if (child === null || child === undefined) continue;
            node.append(child.nodeType ? child : document.createTextNode(String(child)));
        }
        return node;
    }

    function button(label, action, title) {
        const node = el("button", "ddpm-button", label);
        node.type = "button";
        if (title) node.title = title;
        node.addEventListener("click", action);
        return node;
    }

    function url(name, values) {
        const query = new URLSearchParams(values || {});
        return BASE + name + (query.toString() ? "?" + query : "");
    }

    async function answer(response) {
        let body = null;
        try { body = await response.json(); } catch (error) { /* told below */ }
        if (!response.ok) throw new Error((body && body.error) || "The server answered " + response.status + ".");
        return body;
    }

    const get = async (name, values) => answer(await fetch(url(name, values), { credentials: "same-origin" }));
    const post = async (name, values) => answer(await fetch(url(name), {
        method: "POST", credentials: "same-origin", body: JSON.stringify(values),
        headers: { "Content-Type": "application/json", "X-DDPM": "1" },
    }));

    function duration(seconds) {
        seconds = Math.max(0, Math.round(seconds));
        if (seconds < 60) return seconds + " s";
        if (seconds < 3600) return Math.floor(seconds / 60) + " min " + (seconds % 60) + " s";
        return Math.floor(seconds / 3600) + " h " + Math.floor((seconds % 3600) / 60) + " min";
    }

    function number(value) {
        return value === null || value === undefined || Number.isNaN(value) ? "–" : Number(value).toPrecision(3);
    }

    function inputValue(id) {
        const field = root().querySelector("#" + id + " input, #" + id + " textarea");
        return field ? field.value.trim() : "";
    }

    /** Redraw a node only when what it shows has changed, so that nothing flickers or loses focus. */
    function redraw(node, key, build) {
        const text = JSON.stringify(key);
        if (node.dataset.key === text) return;
        node.dataset.key = text;
        node.replaceChildren(...[].concat(build()).filter(Boolean));
    }

    // -- a job's progress ------------------------------------------------------------------------------------------------

    function progress(job) {
        const running = job.state === "running" || job.state === "queued";
        const box = el("div", "ddpm-progress");
        if (running) {
            const bar = el("div", "ddpm-bar", el("div", "ddpm-fill"));
            bar.firstChild.style.width = (100 * job.fraction).toFixed(1) + "%";
            box.append(bar);
        }
        const words = { queued: "waiting", running: "", done: "finished", failed: "failed", stopped: "stopped, the work is saved" };
        const line = el("div", "ddpm-line", el("strong", "", job.title), words[job.state] ? " " : null, words[job.state] || null);
        const p = job.progress || {};
        if (running) {
            if (p.text) line.append(el("span", "", p.text));
            if (p.total) line.append(el("span", "", p.total < 1e9 ? p.done + " / " + p.total : String(p.done)));
            if (job.seconds_left !== null) line.append(el("span", "", duration(job.seconds_left)), el("span", "", "left"));
            if (job.stopping) line.append(el("span", "", "stopping"));
        } else {
            line.append(el("span", "", duration(job.elapsed)));
        }
        box.append(line);
        for (const text of job.messages) box.append(el("div", "ddpm-note", text));
        if (job.error) box.append(el("div", "ddpm-failure", job.error));
        return box;
    }

    const jobKey = (job) => job && [job.id, job.state, job.progress, job.messages.length, job.error, job.stopping];

    // -- dataset: harvest and review -------------------------------------------------------------------------------------

    function drawHarvest(node) {
        const job = status.jobs.harvest;
        redraw(node, jobKey(job), () => {
            if (!job) return [];
            const box = progress(job);
            const r = job.result;
            if (r) {
                const rejected = Object.entries(r.rejected).map(([k, v]) => v + " " + (REASONS[k] || k)).join(", ");
                const skipped = Object.entries(r.skipped).map(([k, v]) => v + " " + k.replace(/_/g, " ")).join(", ");
                box.append(el("div", "ddpm-line", el("span", "", r.found + " found"), el("span", "", r.added + " new"),
                    el("span", "", r.kept + " kept"), rejected ? el("span", "", "rejected: " + rejected) : null,
                    skipped ? el("span", "", "passed over: " + skipped) : null));
            }
            return box;
        });
        if (job && job.result && node.dataset.seen !== String(job.id)) {
            node.dataset.seen = String(job.id);
            review.load();
        }
    }

    const review = {
        dataset: "", view: "unusual", page: 0, size: "0", crop: "center", items: [], total: 0, counts: null, selected: 0, error: "", loading: true, turns: 0, queue: null,
        node: null, grid: null,

        mount(node) {
            this.node = node;
            node.tabIndex = 0;
            node.addEventListener("keydown", (event) => this.key(event));
            this.draw();
        },

        tick() {
            const dataset = inputValue("ddpm_dataset_name");
            if (this.node && dataset !== this.dataset) {
                this.dataset = dataset;
                this.page = 0;
                this.load();
            }
        },

        async load(select) {
            const turn = ++this.turns;
            this.error = "";
            this.loading = true;
            if (!this.dataset || !status || !status.datasets.includes(this.dataset)) {
                this.items = []; this.total = 0; this.counts = null;
            } else {
                try {
                    const found = await get("items", { dataset: this.dataset, view: this.view, page: this.page, size: PAGE_SIZE });
                    if (turn !== this.turns) return undefined; // a later page was asked for meanwhile
                    if (!found.items.length && this.page > 0) {
                        this.page = Math.max(0, Math.ceil(found.total / PAGE_SIZE) - 1);
                        return this.load(select);
                    }
                    Object.assign(this, { items: found.items, total: found.total, counts: found.counts });
                } catch (error) { this.error = error.message; }
            }
            this.loading = false;
            this.selected = Math.min(select || 0, Math.max(0, this.items.length - 1));
            this.draw();
        },

        pages() { return Math.max(1, Math.ceil(this.total / PAGE_SIZE)); },

        thumb(item) {
            return url("thumb", { dataset: this.dataset, id: item.id, v: item.version, size: this.size, crop: this.crop });
        },

        draw() {
            if (!this.node) return;
            if (this.error) { this.node.replaceChildren(el("div", "ddpm-failure", this.error)); return; }
            if (!this.counts && this.loading) {
                this.node.replaceChildren(el("div", "ddpm-empty", "Loading"));
                return;
            }
            if (!this.counts) {
                this.node.replaceChildren(el("div", "ddpm-empty", "No pictures yet: choose folders above and press Harvest."));
                return;
            }
            const views = [["unusual", "Unusual first"], ["twins", "Near duplicates"], ["all", "All"], ["rejected", "Rejected"]];
            const bar = el("div", "ddpm-toolbar");
            for (const [view, label] of views) {
                const b = button(label, () => { this.view = view; this.page = 0; this.load(); this.node.focus(); });
                b.dataset.view = view;
                if (view === this.view) b.classList.add("ddpm-chosen");
                bar.append(b);
            }
            bar.append(el("span", "ddpm-space"));
            bar.append(button("‹", () => this.turn(-1), "Page back"), el("span", "ddpm-page", (this.page + 1) + " / " + this.pages()),
                button("›", () => this.turn(1), "Next page (Enter)"), button("Undo", () => this.undo(), "Take the last step back (Z)"));
            const rejected = Object.entries(this.counts.rejected).map(([k, v]) => v + " " + (REASONS[k] || k)).join(", ");
            const sums = el("div", "ddpm-line", el("strong", "ddpm-kept-count", this.counts.kept), el("span", "", "kept"),
                rejected ? el("span", "", "rejected: " + rejected) : null, el("span", "ddpm-space"), el("span", "", "Shown as"),
                this.choice("size", [["0", "stored"], ["32", "32 px, as the network sees it"], ["64", "64 px, as the network sees it"],
                    ["128", "128 px, as the network sees it"]]),
                this.size === "0" ? null : this.choice("crop", [["center", "center"], ["top", "top"], ["pad", "pad"]]));
            this.grid = el("div", "ddpm-grid" + (this.size === "0" ? "" : " ddpm-pixels"));
            let group = null;
            this.items.forEach((item, index) => {
                const cell = el("div", "ddpm-item" + (item.status === "rejected" ? " ddpm-rejected" : ""));
                cell.dataset.id = item.id;
                if (this.view === "twins" && item.twin_group !== group) { cell.classList.add("ddpm-group"); group = item.twin_group; }
                if (item.has_copy) {
                    const image = el("img");
                    image.loading = "lazy"; image.alt = item.file; image.src = this.thumb(item);
                    cell.append(image);
                } else {
                    cell.append(el("div", "ddpm-nothing", REASONS[item.reason] || item.reason));
                }
                if (item.status === "rejected") cell.append(el("div", "ddpm-badge", REASONS[item.reason] || item.reason));
                cell.addEventListener("click", () => { if (this.selected === index) this.toggle(); else this.select(index); this.node.focus(); });
                this.grid.append(cell);
            });
            if (!this.items.length) this.grid.append(el("div", "ddpm-empty", "Nothing in this view."));
            this.detail = el("div", "ddpm-detail");
            this.node.replaceChildren(bar, sums, el("div", "ddpm-review", this.grid, this.detail));
            this.select(this.selected);
        },

        choice(field, values) {
            const node = el("select", "ddpm-select");
            for (const [value, label] of values) {
                const option = el("option", "", label);
                option.value = value; option.selected = value === this[field];
                node.append(option);
            }
            node.addEventListener("change", () => { this[field] = node.value; this.draw(); });
            return node;
        },

        select(index) {
            if (!this.items.length) return;
            this.selected = Math.max(0, Math.min(index, this.items.length - 1));
            [...this.grid.children].forEach((cell, i) => cell.classList.toggle("ddpm-selected", i === this.selected));
            const item = this.items[this.selected];
            const cell = this.grid.children[this.selected];
            if (cell.scrollIntoView) cell.scrollIntoView({ block: "nearest" });
            const parts = [];
            if (item.has_copy) {
                const large = el("img", "ddpm-large");
                large.src = url("thumb", { dataset: this.dataset, id: item.id, v: item.version }); large.alt = item.file;
                parts.push(large);
            }
            parts.push(el("div", "ddpm-file", item.file));
            parts.push(el("div", "", item.status === "kept" ? "kept" : item.message || REASONS[item.reason]));
            if (item.suspicion !== null) parts.push(el("div", "", el("span", "", number(item.suspicion)), " ", el("span", "", "times as unusual as the typical picture")));
            if (item.prompt) parts.push(el("div", "ddpm-prompt", item.prompt));
            if (item.negative_prompt) parts.push(el("div", "ddpm-prompt ddpm-negative", el("strong", "", "Negative prompt:"), " ", item.negative_prompt));
            if (item.has_copy) parts.push(button(item.status === "kept" ? "Reject (X)" : "Keep (X)", () => { this.toggle(); this.node.focus(); }));
            this.detail.replaceChildren(...parts);
        },

        async toggle() {
            const item = this.items[this.selected];
            if (!item || !item.has_copy) return;
            // shown at once and sent after: keys come faster than answers
            const before = { status: item.status, reason: item.reason, message: item.message };
            const keep = item.status !== "kept";
            Object.assign(item, keep ? { status: "kept", reason: "", message: "" } : { status: "rejected", reason: "user", message: "Rejected by hand." });
            this.selected = Math.min(this.selected + 1, this.items.length - 1);
            this.draw();
            try {
                const dataset = this.dataset;
                this.queue = (this.queue || Promise.resolve()).then(() => post("decide", { dataset, ids: [item.id], action: keep ? "keep" : "reject" }));
                const answer = await this.queue;
                if (dataset === this.dataset) { this.counts = answer.counts; this.draw(); }
            } catch (error) {
                this.queue = null;
                Object.assign(item, before);
                this.draw();
                this.detail.prepend(el("div", "ddpm-failure", error.message));
            }
        },

        undo() { return this.change(async () => { await this.queue; return post("undo", { dataset: this.dataset }); }, () => this.load(this.selected)); },

        async change(request, then) {
            try { then(await request()); } catch (error) { this.detail.prepend(el("div", "ddpm-failure", error.message)); }
        },

        turn(by) {
            const page = this.page + by;
            if (page < 0 || page >= this.pages()) return;
            this.page = page;
            this.load();
        },

        columns() {
            const cells = [...this.grid.children];
            const top = cells.length ? cells[0].offsetTop : 0;
            const count = cells.findIndex((cell) => cell.offsetTop !== top);
            return count < 1 ? cells.length || 1 : count;
        },

        key(event) {
            if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT" || !this.grid) return;
            const actions = {
                ArrowRight: () => this.select(this.selected + 1), ArrowLeft: () => this.select(this.selected - 1),
                ArrowDown: () => this.select(this.selected + this.columns()), ArrowUp: () => this.select(this.selected - this.columns()),
                x: () => this.toggle(), X: () => this.toggle(), Delete: () => this.toggle(), " ": () => this.toggle(),
                z: () => this.undo(), Z: () => this.undo(), Enter: () => this.turn(1), PageDown: () => this.turn(1), PageUp: () => this.turn(-1),
            };
            const action = actions[event.key];
            if (!action) return;
            event.preventDefault();
            event.stopPropagation();
            action();
        },
    };

    // -- train -----------------------------------------------------------------------------------------------------------

    const training = { model: "", curves: null, asked: 0, step: null, bandsOpen: false };

    function drawTrain(node) {
        const job = status.jobs.train;
        const running = job && (job.state === "running" || job.state === "queued");
        const typed = inputValue("ddpm_train_model");
        const model = running || (job && !typed) ? job.title.replace(/^Training /, "") : typed;
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
                    box.append(el("div", "ddpm-line", figure("images/s", p.images_per_second), figure("training loss", number(p.loss)),
                        p.heldout_loss !== null ? figure("held-out loss", number(p.heldout_loss)) : null));
                }
                parts.push(box);
            }
            if (curves && curves.train.length) {
                const columns = el("div", "ddpm-columns");
                columns.append(chart(curves));
                if (curves.previews.length) columns.append(previews(curves));
                parts.push(columns);
                if (curves.bands) parts.push(bands(curves.bands));
                parts.push(el("div", "ddpm-note", "While both losses fall the model learns. When the held-out loss rises and the loss on seen pictures goes on falling, it begins to copy: stop there."));
            }
            for (const text of (curves && curves.notes) || []) parts.push(el("div", "ddpm-note", text));
            return parts;
        });
    }

    function figure(label, value) {
        return el("span", "ddpm-figure", el("strong", "", value), " ", el("span", "", label));
    }

    function chart(curves) {
        const W = 520, H = 220, L = 46, B = 24, T = 8, R = 8;
        const NS = "http://www.w3.org/2000/svg";
        const svg = document.createElementNS(NS, "svg");
        svg.setAttribute("viewBox", "0 0 " + W + " " + H);
        svg.setAttribute("class", "ddpm-chart");
        const all = [...curves.train, ...curves.heldout, ...curves.seen].map((p) => p[1]).filter((v) => v > 0);
        const low = Math.log(Math.min(...all)), high = Math.log(Math.max(...all)) + 1e-6;
        const last = Math.max(...curves.train.map((p) => p[0]), 1);
        const X = (s) => L + (W - L - R) * s / last;
        const Y = (v) => T + (H - T - B) * (high - Math.log(Math.max(v, 1e-9))) / Math.max(high - low, 1e-6);
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
        add("text", { x: W - R, y: H - 6, "text-anchor": "end" }, "step " + last);
        for (const [name, points] of [["train", curves.train], ["seen", curves.seen], ["heldout", curves.heldout]]) {
            if (points.length) add("polyline", { points: points.map((p) => X(p[0]).toFixed(1) + "," + Y(p[1]).toFixed(1)).join(" "), class: "ddpm-curve ddpm-" + name });
        }
        const legend = el("div", "ddpm-line ddpm-legend", el("span", "ddpm-key-train", "training loss"), el("span", "ddpm-key-seen", "on seen pictures, averaged weights"),
            curves.heldout.length ? el("span", "ddpm-key-heldout", "on held-out pictures") : null);
        return el("div", "ddpm-chartbox", svg, legend);
    }

    /** Loss by timestep: low timesteps are fine detail, high ones layout. */
    function bands(line) {
        const table = el("table", "ddpm-bands");
        const names = Object.keys(line.seen_bands);
        table.append(el("tr", "", el("th", "", "Timesteps"), ...names.map((name) => el("th", "", name))));
        table.append(el("tr", "", el("td", "", "Loss on seen pictures"), ...names.map((name) => el("td", "", number(line.seen_bands[name])))));
        if (line.bands) table.append(el("tr", "", el("td", "", "Loss on held-out pictures"), ...names.map((name) => el("td", "", number(line.bands[name])))));
        const box = el("details", "ddpm-details", el("summary", "", "Loss by timestep"), table, el("div", "ddpm-note", "Low timesteps are little noise: there the network learns fine detail, and there a gap between the rows shows first when it begins to copy. High timesteps are much noise: there it learns the layout."));
        box.open = training.bandsOpen; // drawn anew at every step, it stays as the person left it
        box.addEventListener("toggle", () => { training.bandsOpen = box.open; });
        return box;
    }

    function previews(curves) {
        const steps = curves.previews;
        const index = training.step === null ? steps.length - 1 : Math.min(training.step, steps.length - 1);
        const image = el("img", "ddpm-strip");
        const label = el("span", "", "step " + steps[index]);
        image.alt = "preview";
        image.src = url("preview", { model: curves.model, step: steps[index] });
        const slider = el("input");
        slider.type = "range"; slider.min = 0; slider.max = steps.length - 1; slider.value = index;
        slider.addEventListener("input", () => {
            training.step = Number(slider.value) === steps.length - 1 ? null : Number(slider.value);
            image.src = url("preview", { model: curves.model, step: steps[slider.value] });
            label.textContent = "step " + steps[slider.value];
        });
        return el("div", "ddpm-previewbox", el("div", "ddpm-line", el("span", "", "The same noise, as it is denoised at"), label), image, slider);
    }

    function drawUnfinished(node) {
        const runs = status.unfinished.filter((run) => run.state === "running");
        redraw(node, runs, () => runs.map((run) => {
            const box = el("div", "ddpm-note ddpm-unfinished", el("span", "", "Training of"), " ", el("strong", "", run.name), " ",
                el("span", "", "was cut off; it is saved up to step"), " ", el("strong", "", run.step), " ");
            box.append(button("Go on", async () => {
                try { await post("resume", { model: run.name }); } catch (error) { box.append(el("div", "ddpm-failure", error.message)); }
            }));
            return box;
        }));
    }

    // -- generate --------------------------------------------------------------------------------------------------------

    function drawSample(node) {
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
    }

    function drawAnimation(node) {
        const job = status.jobs.sample;
        const ready = job && job.result && job.result.count;
        redraw(node, ready ? job.id : null, () => {
            if (!ready) return [];
            const image = el("img", "ddpm-animation");
            image.alt = "denoising"; image.loading = "lazy"; image.src = url("animation", { job: job.id });
            const box = el("details", "ddpm-details", el("summary", "", "From noise to picture"), image,
                el("div", "ddpm-note", "What the network takes the picture for, call by call: first the mean of all it has seen, then layout, then detail."));
            return box;
        });
    }

    function drawEvaluate(node) {
        const job = status.jobs.evaluate;
        redraw(node, jobKey(job), () => {
            if (!job) return [];
            const box = progress(job);
            const r = job.result;
            if (r) {
                const copied = Math.round(1000 * r.memorised) / 10;
                box.append(el("div", "ddpm-line", figure("KID", number(r.kid)), figure("95 % interval", number(r.kid_low) + " to " + number(r.kid_high)),
                    figure("real against real", number(r.floor)), figure("copied", copied + " %")));
                box.append(el("div", "ddpm-note", "KID is the distance from the real pictures, on features of random convolutions; the nearer to real against real, the better. Copied are pictures at least three times nearer to one training picture than to any other. Below: generated pictures above their nearest training pictures, the most copied first."));
                const image = el("img", "ddpm-neighbours");
                image.alt = "neighbours"; image.src = url("neighbours", { job: job.id });
                box.append(image);
            }
            return box;
        });
    }

    // -- the loop --------------------------------------------------------------------------------------------------------

    const DRAW = { harvest: drawHarvest, train: drawTrain, unfinished: drawUnfinished, sample: drawSample, animation: drawAnimation, evaluate: drawEvaluate };

    function draw() {
        for (const node of root().querySelectorAll("[data-ddpm]")) {
            const kind = node.dataset.ddpm;
            if (kind === "review") { if (!node.dataset.mounted) { node.dataset.mounted = "1"; review.mount(node); } continue; }
            if (status) DRAW[kind](node);
        }
        if (!status) return;
        review.tick();
        const now = JSON.stringify([status.datasets, status.models]);
        const refresh = byId("ddpm_refresh");
        if (refresh && now !== lists) {
            lists = now;
            refresh.click();
        }
    }

    function offline(message) {
        for (const node of root().querySelectorAll("#ddpm_tab")) {
            let line = node.querySelector(":scope > .ddpm-offline");
            if (!message) { if (line) line.remove(); continue; }
            if (!line) { line = el("div", "ddpm-failure ddpm-offline"); node.prepend(line); }
            line.textContent = message;
        }
    }

    async function poll() {
        let wait = 1500;
        if (byId("ddpm_tab")) {
            try {
                status = await get("status");
                if (!connected) offline("");
                connected = true;
                const busy = Object.values(status.jobs).some((job) => job.state === "running" || job.state === "queued");
                wait = document.hidden ? 4000 : busy ? 500 : 1200;
            } catch (error) {
                // a server that restarts, a laptop that slept: it goes on where it was when the answer comes
                connected = false;
                offline("No connection to the server (" + error.message + "). Trying again; what runs there goes on.");
                wait = 2000;
            }
            try { draw(); } catch (error) { console.error("ddpm", error); }
        }
        window.setTimeout(poll, wait);
    }

    poll();
})();
