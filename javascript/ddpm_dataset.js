// Dataset sub-tab: harvest, collecting, and the review of what came.
(function () {
    "use strict";

    const { T, REASONS, draw, ticks, root, byId, el, button, get, post, number, inputValue, redraw, progress, jobKey, show } = window.ddpm;
    const PAGE_SIZE = 60;

    /** Reasons with their counts, each text a node of its own. */
    function reasons(counts) {
        const parts = [];
        for (const [reason, count] of Object.entries(counts)) {
            if (parts.length) parts.push(", ");
            parts.push(String(count), " ", el("span", "", REASONS[reason] || reason));
        }
        return parts;
    }

    const counted = (count, word) => el("span", "", count, " ", el("span", "", word));

    const SKIPPED = {
        grid: T("grids"), mask: T("masks"), intermediate: T("intermediate copies"), own: T("from your DDPM models"), filtered: T("filtered out"),
        in_bin: T("in a recycle bin"), thumbnail: T("thumbnails"), hidden: T("in hidden folders"), temporary: T("unfinished files"),
        link_outside: T("links out of the folder"), broken_link: T("broken links"), unreadable: T("not readable"),
    };

    /** Counts of what was skipped by kind; of files of other kinds, with their ending. */
    function skippedCounts(counts) {
        return Object.entries(counts).flatMap(([kind, count], i) => {
            const ending = kind.startsWith("unsupported_") ? kind.slice("unsupported_".length).toUpperCase() : "";
            const label = ending ? T("files (not supported)") : SKIPPED[kind] || kind.replace(/_/g, " ");
            return [i ? ", " : "", String(count), " ", ending, ending ? " " : "", el("span", "", label)];
        });
    }

    draw.harvest = function (node, status) {
        const { harvest, count } = status.jobs;
        const job = count && (!harvest || count.id > harvest.id) ? count : harvest;
        redraw(node, jobKey(job), () => {
            if (!job) return [];
            const box = progress(job);
            const r = job.result;
            if (r) {
                const line = el("div", "ddpm-line", counted(r.found, T("found")), counted(r.added, job.kind === "count" ? T("new to a dataset") : T("added")), r.added ? counted(r.kept, T("kept")) : null);
                if (!r.found) line.className = "ddpm-failure";
                if (Object.keys(r.rejected).length) line.append(el("span", "", el("span", "", T("rejected:")), " ", ...reasons(r.rejected)));
                if (r.mended) line.append(counted(r.mended, T("read again")));
                if (Object.keys(r.skipped).length) line.append(el("span", "", el("span", "", T("skipped:")), " ", ...skippedCounts(r.skipped)));
                box.append(line, ...(r.notes || []).map((note) => el("div", "ddpm-note", note)));
            }
            return box;
        });
        if (harvest && harvest.result && node.dataset.seen !== String(harvest.id)) {
            node.dataset.seen = String(harvest.id);
            review.load();
        }
    };

    draw.collecting = function (node, status) {
        const c = status.collecting;
        redraw(node, c, () => {
            const parts = [];
            if (c.enabled) {
                const line = el("div", "ddpm-line ddpm-collecting", el("strong", "", T("Collecting into"), " ", c.dataset));
                if (c.words) line.append(el("span", "", el("span", "", T("prompt contains")), " ", c.words));
                line.append(counted(c.collected, T("collected since start")));
                if (c.rejected) line.append(counted(c.rejected, T("rejected by the checks")));
                if (c.waiting) line.append(counted(c.waiting, T("waiting")));
                parts.push(line);
            } else {
                parts.push(el("div", "ddpm-note", T("Not collecting.")));
            }
            if (c.overflow) parts.push(el("div", "ddpm-failure", c.overflow, " ", el("span", "", T("images came too fast and were left out. Harvest the folder to add them."))));
            if (c.error) parts.push(el("div", "ddpm-failure", c.error));
            return parts;
        });
        if (c.enabled && c.dataset === review.dataset && node.dataset.seen !== String(c.collected + c.rejected)) {
            node.dataset.seen = String(c.collected + c.rejected);
            if (review.page === 0 && !review.busy()) review.load(review.selected);
        }
    };

    draw.collect = function (node, status) {
        const job = status.jobs.collect;
        const left = status.uncollected;
        redraw(node, [jobKey(job), left], () => {
            const parts = [];
            for (const one of left) {
                const box = el("div", "ddpm-note ddpm-unfinished", el("strong", "", one.dataset), " ", el("span", "", T("waiting for images:")), " ",
                    el("strong", "", one.done + " / " + one.total), " ", el("span", "ddpm-short", one.prompt), " ");
                const act = (route) => async () => {
                    try { await post(route, { dataset: one.dataset }); } catch (error) { box.append(el("div", "ddpm-failure", error.message)); }
                };
                box.append(button(T("Resume"), act("collect")), " ", button(T("Discard remaining"), act("give_up")));
                parts.push(box);
            }
            if (job) {
                const box = progress(job);
                const r = job.result;
                if (r) box.append(el("div", "ddpm-line", counted(r.generated, T("generated")), counted(r.added, T("added")), counted(r.kept, T("kept"))));
                parts.push(box);
            }
            return parts;
        });
        const done = job ? [job.id, job.progress.done, job.state].join() : "";
        if (job && node.dataset.seen !== done) {
            node.dataset.seen = done;
            if (job.subject === review.dataset && !review.busy()) review.load(review.selected);
        }
    };

    const review = {
        dataset: null, view: "unusual", page: 0, size: "0", crop: "center", search: "", by: "prompts", like: null, found: null, items: [], total: 0, counts: null, selected: 0, marked: new Set(), error: "", loading: true, turns: 0, queue: null,
        node: null, grid: null,

        mount(node) {
            this.node = node;
            node.tabIndex = 0;
            node.addEventListener("keydown", (event) => this.key(event));
            // before anything has the focus, or after a button was pressed: the letters are meant for what is framed
            document.addEventListener("keydown", (event) => {
                const free = event.target === document.body || event.target.tagName === "BUTTON";
                if (free && node.offsetParent !== null && "xXzZ".includes(event.key) && !node.contains(event.target)) this.key(event);
            });
            this.draw();
        },

        tick(status) {
            const dataset = inputValue("ddpm_dataset_name");
            const wasThere = (this.datasets || []).includes(dataset);
            this.datasets = status.datasets;
            if (!this.node) return;
            const encoder = (status.encoders || {})[dataset] || "";
            if (encoder !== this.encoder) {
                this.encoder = encoder;
                if (dataset === this.dataset && this.counts) this.draw();
            }
            if (dataset !== this.dataset) {
                this.dataset = dataset;
                this.page = 0;
                this.like = null;
                if (this.view === "misfits") this.view = "unusual";
                this.load();
            } else if (wasThere !== this.datasets.includes(dataset)) {
                this.load(); // the dataset has come into being, or gone to the trash
            }
        },

        async load(select) {
            const turn = ++this.turns;
            this.error = "";
            this.loading = true;
            if (!this.dataset || !(this.datasets || []).includes(this.dataset)) {
                this.items = []; this.total = 0; this.counts = null;
            } else {
                try {
                    const wanted = { dataset: this.dataset, page: this.page, size: PAGE_SIZE };
                    const searching = this.searching();
                    const found = await get(searching ? "search" : "items", Object.assign(wanted, searching || { view: this.view }, !searching && this.search ? { search: this.search } : {}));
                    if (turn !== this.turns) return undefined; // a later page was asked for meanwhile
                    if (found.preparing) {
                        Object.assign(this, { items: [], total: 0, found: { preparing: found.preparing } });
                        this.draw();
                        window.setTimeout(() => { if (turn === this.turns) this.load(select); }, 700);
                        return undefined;
                    }
                    this.found = searching ? found : null;
                    if (!found.items.length && this.page > 0) {
                        this.page = Math.max(0, Math.ceil(found.total / PAGE_SIZE) - 1);
                        return this.load(select);
                    }
                    Object.assign(this, { items: found.items, total: found.total, counts: found.counts });
                } catch (error) {
                    if (turn !== this.turns) return undefined;
                    if (this.searching() && this.counts) Object.assign(this, { items: [], total: 0, found: { error: error.message } });
                    else this.error = error.message;
                }
            }
            this.loading = false;
            this.marked.clear();
            this.selected = Math.min(select || 0, Math.max(0, this.items.length - 1));
            this.draw();
        },

        /** What an image-text encoder is asked, or null where the prompts are read. */
        searching() {
            if (this.like) return { like: this.like.id };
            if (this.view === "misfits") return { misfits: 1 };
            return this.by === "images" && this.search ? { text: this.search } : null;
        },

        /** Images that are like one of them. */
        alike(item) {
            this.like = item;
            this.page = 0;
            this.load();
        },

        /** Whether a person is in the middle of deciding, so that new pictures must not move what they see. */
        busy() { return Boolean(this.node) && this.node.contains(document.activeElement); },

        pages() { return Math.max(1, Math.ceil(this.total / PAGE_SIZE)); },

        picture(className, item, size) {
            const image = el("img", className);
            show(image, { dataset: this.dataset, id: item.id, version: item.version, size, crop: size === "0" ? "center" : this.crop, file: item.file });
            return image;
        },

        draw() {
            // the field for a search is moved into the new drawing, which takes its focus from it
            const typing = this.searchNode && this.searchNode.getRootNode().activeElement === this.searchNode;
            const [from, to] = typing ? [this.searchNode.selectionStart, this.searchNode.selectionEnd] : [0, 0];
            this.drawAnew();
            if (typing && this.searchNode.isConnected) {
                this.searchNode.focus({ preventScroll: true });
                this.searchNode.setSelectionRange(from, to);
            }
        },

        drawAnew() {
            if (!this.node) return;
            if (this.error) { this.node.replaceChildren(el("div", "ddpm-failure", this.error)); return; }
            if (!this.counts && this.loading) {
                this.node.replaceChildren(el("div", "ddpm-empty", T("Loading")));
                return;
            }
            if (!this.counts) {
                this.node.replaceChildren(el("div", "ddpm-empty", T("No images yet. Harvest a folder first.")));
                return;
            }
            const views = [["unusual", T("Outliers first")], ["twins", T("Near duplicates")], ["all", T("All")], ["rejected", T("Rejected")]];
            if (this.encoder) views.splice(2, 0, ["misfits", T("Words that do not fit")]);
            const bar = el("div", "ddpm-toolbar");
            for (const [view, label] of views) {
                const b = button(label, () => { Object.assign(this, { view, page: 0, like: null }); this.load(); this.node.focus(); });
                b.dataset.view = view;
                if (view === this.view && !this.like) b.classList.add("ddpm-chosen");
                bar.append(b);
            }
            if (this.view === "twins") bar.append(button(T("Keep one of each group"), () => this.keepOne()));
            bar.append(this.searchField(), this.searchedIn(), el("span", "ddpm-space"), button(T("Select page"), () => this.markPage(), T("Select all images on this page (Ctrl+A)")));
            bar.append(button("‹", () => this.turn(-1), T("Previous page")), el("span", "ddpm-page", (this.page + 1) + " / " + this.pages()),
                button("›", () => this.turn(1), T("Next page (Enter)")), button(T("Undo"), () => this.undo(), T("Undo (Z)")));
            const rejected = reasons(this.counts.rejected);
            const sums = el("div", "ddpm-line", el("strong", "ddpm-kept-count", this.counts.kept), el("span", "", T("kept")),
                rejected.length ? el("span", "", el("span", "", T("rejected:")), " ", ...rejected) : null, el("span", "ddpm-space"), el("span", "", T("View")),
                this.choice("size", [["0", T("stored copy")], ["32", T("32 px training size")], ["64", T("64 px training size")],
                    ["128", T("128 px training size")]]),
                this.size === "0" ? null : this.choice("crop", [["center", T("center")], ["top", T("top")], ["pad", T("pad")]]));
            const told = this.foundLine();
            this.grid = el("div", "ddpm-grid" + (this.size === "0" ? "" : " ddpm-pixels"));
            let group = null;
            this.cells = [];
            this.items.forEach((item, index) => {
                const cell = el("div", "ddpm-item" + (item.status === "rejected" ? " ddpm-rejected" : ""));
                cell.dataset.id = item.id;
                if (this.view === "twins" && item.twin_group !== group) { cell.classList.add("ddpm-group"); group = item.twin_group; }
                cell.append(item.has_copy ? this.picture("", item, this.size) : el("div", "ddpm-nothing", T("no image")));
                if (item.status === "rejected") cell.append(el("div", "ddpm-badge", REASONS[item.reason] || item.reason));
                else if (item.word) cell.append(el("div", "ddpm-badge", item.word));
                cell.addEventListener("click", (event) => {
                    if (event.shiftKey) this.markTo(index);
                    else if (event.ctrlKey || event.metaKey) this.mark(index);
                    else this.marked.clear();
                    this.select(index, event.shiftKey || event.ctrlKey || event.metaKey);
                    this.node.focus();
                });
                cell.addEventListener("dblclick", () => { this.select(index); this.toggle(); });
                this.cells.push(cell);
            });
            this.grid.append(...this.cells);
            if (!this.items.length && !(this.found && (this.found.error || this.found.preparing))) this.grid.append(el("div", "ddpm-empty", T("No images in this view.")));
            this.detail = el("div", "ddpm-detail");
            this.beside = el("div", "ddpm-review", this.grid, this.detail);
            this.node.replaceChildren(bar, sums, ...(told ? [told] : []), this.beside);
            this.select(this.selected, true);
        },

        /** What was searched for, how far it has come, or what it wants. */
        foundLine() {
            const parts = [];
            if (this.like) {
                const image = el("img", "ddpm-likeness");
                show(image, { dataset: this.dataset, id: this.like.id, version: this.like.version, size: "64", crop: "center", file: this.like.file });
                parts.push(image, el("span", "", T("Images like this one")), button(T("Show all again"), () => { this.like = null; this.page = 0; this.load(); }));
            } else if (this.view === "misfits") parts.push(el("span", "ddpm-dim", T("Each image with the word of its prompt that fits it least beside the others with that word. Some are only rare.")));
            if (!this.found) return parts.length ? el("div", "ddpm-line", ...parts) : null;
            if (this.found.error) return el("div", "ddpm-failure", this.found.error);
            if (this.found.preparing) {
                const { progress: at } = this.found.preparing;
                parts.push(el("span", "", T("Looking at the images"), " "), el("span", "", at && at.total ? at.done + " / " + at.total : ""));
            }
            const unknown = this.found.unknown || [];
            if (unknown.length) parts.push(el("span", "ddpm-dim", T("The encoder does not know:"), " ", unknown.join(", ")));
            return parts.length ? el("div", "ddpm-line", ...parts) : null;
        },

        /** Whether what is typed is looked for in the prompts, or in what the images show. */
        searchedIn() {
            const node = el("select", "ddpm-select ddpm-searched");
            node.setAttribute("aria-label", T("Search in"));
            for (const [value, label] of [["prompts", T("in prompts")], ["images", T("in images")]]) {
                const option = el("option", "", label);
                option.value = value; option.selected = value === this.by;
                node.append(option);
            }
            node.addEventListener("change", () => { this.by = node.value; this.page = 0; this.like = null; this.load(); });
            return node;
        },

        /** Words that the prompt or the file's name must have; what is typed is looked for when typing pauses. */
        searchField() {
            if (this.searchNode) return this.searchNode; // one for all drawings: it keeps its focus
            const field = el("input", "ddpm-search");
            field.type = "search"; field.placeholder = T("Search"); field.setAttribute("aria-label", T("Search"));
            let timer = null;
            field.addEventListener("input", () => {
                window.clearTimeout(timer);
                timer = window.setTimeout(() => { Object.assign(this, { search: field.value.trim(), page: 0, like: null }); this.load(); }, 300);
            });
            this.searchNode = field;
            return field;
        },

        choice(field, values) {
            const node = el("select", "ddpm-select");
            node.setAttribute("aria-label", field === "size" ? T("View") : T("Crop"));
            for (const [value, label] of values) {
                const option = el("option", "", label);
                option.value = value; option.selected = value === this[field];
                node.append(option);
            }
            node.addEventListener("change", () => { this[field] = node.value; this.draw(); });
            return node;
        },

        /** Beside the grid; on a narrow page below the row of the selected image, or it would be a long way down. */
        placeDetail() {
            if (!window.matchMedia("(max-width: 700px)").matches) {
                if (this.detail.parentNode !== this.beside) this.beside.append(this.detail);
                return;
            }
            this.detail.remove();
            const columns = this.columns();
            const last = Math.min(this.cells.length, (Math.floor(this.selected / columns) + 1) * columns) - 1;
            this.cells[last].after(this.detail);
        },

        mark(index) {
            const { id } = this.items[index];
            if (!this.marked.size) this.marked.add(this.items[this.selected].id);
            if (this.marked.has(id)) this.marked.delete(id); else this.marked.add(id);
        },

        markTo(index) {
            const [first, last] = [Math.min(index, this.selected), Math.max(index, this.selected)];
            for (let i = first; i <= last; i++) this.marked.add(this.items[i].id);
        },

        markPage() {
            const all = this.marked.size === this.items.length;
            this.marked = new Set(all ? [] : this.items.map((item) => item.id));
            this.select(this.selected, true);
            this.node.focus();
        },

        /** The items that a key or a button is about. */
        chosen() { return this.marked.size ? this.items.filter((item) => this.marked.has(item.id)) : [this.items[this.selected]].filter(Boolean); },

        select(index, marking) {
            if (!this.items.length) return;
            if (!marking) this.marked.clear();
            this.selected = Math.max(0, Math.min(index, this.items.length - 1));
            this.cells.forEach((one, i) => {
                one.classList.toggle("ddpm-selected", i === this.selected);
                one.classList.toggle("ddpm-marked", this.marked.has(this.items[i].id));
            });
            this.placeDetail();
            const item = this.items[this.selected];
            const cell = this.cells[this.selected];
            if (cell.scrollIntoView) cell.scrollIntoView({ block: "nearest" });
            const parts = [];
            if (item.has_copy) parts.push(this.picture("ddpm-large", item, "0"));
            parts.push(el("div", "ddpm-file", item.file));
            parts.push(el("div", "", item.status === "kept" ? T("kept") : T(item.message) || REASONS[item.reason]));
            if (item.suspicion !== null) parts.push(el("div", "", el("span", "", number(item.suspicion)), " ", el("span", "", T("× the typical outlier score"))));
            if (item.prompt) parts.push(el("div", "ddpm-prompt", item.prompt));
            if (item.negative_prompt) parts.push(el("div", "ddpm-prompt ddpm-negative", el("strong", "", T("Negative prompt:")), " ", item.negative_prompt));
            const first = this.chosen()[0];
            const decide = first && first.status === "kept" ? T("Reject (X)") : T("Keep (X)");
            const acts = el("div", "ddpm-line", item.has_copy || this.marked.size ? button(decide, () => { this.toggle(); this.node.focus(); }) : null,
                item.has_copy && item.status === "kept" ? button(T("More like this"), () => this.alike(item)) : null,
                item.has_copy ? button(T("Edit this image"), () => this.edit(item)) : null,
                this.marked.size ? counted(this.marked.size, T("selected")) : null);
            if (item.added && item.added.length) parts.push(el("div", "ddpm-prompt", el("span", "ddpm-dim", T("Words added:")), " ", item.added.join(", ")));
            if (item.removed && item.removed.length) parts.push(el("div", "ddpm-prompt", el("span", "ddpm-dim", T("Words removed:")), " ", item.removed.join(", ")));
            if (item.score !== undefined) parts.push(el("div", "", el("span", "", number(item.score)), " ", el("span", "", item.word ? T("deviations below the others with this word") : T("fit (1 = fully)"))));
            if (first && first.status === "kept") parts.push(this.wordsField());
            this.detail.replaceChildren(...(item.has_copy ? parts.splice(0, 1) : []), acts, ...parts);
        },

        /** Begin with it in the Generate sub-tab. */
        edit(item) {
            window.ddpm.picked = [this.dataset, item.id];
            window.ddpm.openTab("generate");
            const press = () => { // gradio 6 makes a sub-tab when it is opened first
                const there = byId("ddpm_edit_item");
                if (there) there.click(); else window.setTimeout(press, 100);
            };
            press();
        },

        /** Words for the selected images, beside those of their prompts. */
        wordsField() {
            const field = el("input", "ddpm-name");
            field.value = this.typedWords || "";
            field.placeholder = T("red hair, hat"); field.setAttribute("aria-label", T("Words of the selected images"));
            field.addEventListener("input", () => { this.typedWords = field.value; });
            const edit = (what) => button(what === "add" ? T("Add words") : T("Remove words"), () => this.editWords({ [what]: field.value }));
            return el("div", "ddpm-line", field, edit("add"), edit("remove"));
        },

        async editWords(values) {
            const items = this.chosen().filter((item) => item.status === "kept");
            const { dataset } = this;
            try {
                const answer = await post("edit_words", { dataset, ids: items.map((item) => item.id), ...values });
                window.ddpm.edits = (window.ddpm.edits || 0) + 1; // the panel of words looks again
                if (dataset !== this.dataset) return; // another one has images of the same numbers
                for (const { id, added, removed } of answer.items) Object.assign(this.items.find((item) => item.id === id) || {}, { added, removed });
                this.typedWords = "";
                this.select(this.selected, true);
                this.detail.append(el("div", "ddpm-line", el("span", "", T("Done:")), counted(answer.changed, T("images")), el("span", "ddpm-dim", T("Undo is in Words."))));
            } catch (error) { this.detail.append(el("div", "ddpm-failure", error.message)); }
        },

        async toggle() {
            const chosen = this.chosen().filter((item) => item.has_copy);
            if (!chosen.length) return;
            // shown at once and sent after: keys come faster than answers
            const keep = chosen[0].status !== "kept";
            const changed = chosen.filter((item) => (item.status === "kept") !== keep);
            const before = changed.map(({ status, reason, message }) => ({ status, reason, message }));
            for (const item of changed) Object.assign(item, keep ? { status: "kept", reason: "", message: "" } : { status: "rejected", reason: "user", message: "Rejected by hand." });
            if (!this.marked.size) this.selected = Math.min(this.selected + 1, this.items.length - 1);
            this.marked.clear();
            this.draw();
            try {
                const dataset = this.dataset;
                const ids = changed.map((item) => item.id);
                this.queue = (this.queue || Promise.resolve()).then(() => post("decide", { dataset, ids, action: keep ? "keep" : "reject" }));
                const answer = await this.queue;
                if (dataset === this.dataset) { this.counts = answer.counts; this.draw(); }
            } catch (error) {
                this.queue = null;
                changed.forEach((item, i) => Object.assign(item, before[i]));
                this.draw();
                this.detail.prepend(el("div", "ddpm-failure", error.message));
            }
        },

        /** Of each group of near duplicates keep one; Undo takes it back. */
        async keepOne() {
            try {
                await this.queue;
                await post("keep_one", { dataset: this.dataset });
                await this.load();
            } catch (error) { this.detail.prepend(el("div", "ddpm-failure", error.message)); }
        },

        /** Take the last step back and stand on what it was about, or the next key would hit another picture. */
        async undo() {
            try {
                await this.queue;
                const answer = await post("undo", { dataset: this.dataset });
                this.counts = answer.counts;
                const index = this.items.findIndex((item) => answer.ids.includes(item.id));
                if (index < 0 || this.items[index].status === "kept") {
                    await this.load(this.selected); // of another page, or rejected again for a reason that only the server knows
                    const found = this.items.findIndex((item) => answer.ids.includes(item.id));
                    if (found >= 0) this.select(found);
                    return;
                }
                for (const item of this.items) {
                    if (answer.ids.includes(item.id)) Object.assign(item, { status: "kept", reason: "", message: "" });
                }
                this.selected = index;
                this.draw();
            } catch (error) { this.detail.prepend(el("div", "ddpm-failure", error.message)); }
        },

        turn(by) {
            const page = this.page + by;
            if (page < 0 || page >= this.pages()) return;
            this.page = page;
            this.load();
        },

        columns() {
            const { cells } = this;
            const top = cells.length ? cells[0].offsetTop : 0;
            const count = cells.findIndex((cell) => cell.offsetTop !== top);
            return count < 1 ? cells.length || 1 : count;
        },

        key(event) {
            if (event.target.tagName === "SELECT" || event.target.tagName === "INPUT" || !this.grid) return;
            if ((event.ctrlKey || event.metaKey) && event.key === "a") { event.preventDefault(); this.markPage(); return; }
            if (event.ctrlKey || event.metaKey || event.altKey) return;
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

    window.ddpm.reviewAgain = () => { if (review.node && review.dataset) review.load(review.selected); };

    draw.review = function (node) {
        if (node.dataset.mounted) return;
        node.dataset.mounted = "1";
        review.mount(node);
    };
    ticks.push((status) => review.tick(status));

    // -- taking over what stands in the WebUI's txt2img tab --------------------------------------------------------------

    /** Called by gradio: what our fields hold now; returned with the values of the txt2img tab in their places. */
    window.ddpmTakeOver = function (...current) {
        const ids = ["txt2img_prompt", "txt2img_neg_prompt", "txt2img_sampling", "txt2img_scheduler", "txt2img_steps", "txt2img_cfg_scale", "txt2img_width", "txt2img_height"];
        return ids.map((id, i) => {
            const field = root().querySelector("#" + id + " textarea, #" + id + " input[type=number], #" + id + " input");
            if (!field || (field.value === "" && i > 1)) return current[i];
            return i > 3 ? Number(field.value) : field.value;
        });
    };
})();
