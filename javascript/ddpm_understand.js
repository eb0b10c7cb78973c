// Understand sub-tab: its pages, what they share (choices, sliders, figures, curves), and the questions they ask the server.
// A page is a file of its own, ddpm_understand_<page>.js, that calls add(). Nothing is asked while the tab is closed.
(function () {
    "use strict";

    const { T, draw, byId, el, button, get, number } = window.ddpm;
    const HASH = "#ddpm_tab_understand";
    const pages = [];
    const state = fromAddress();
    const shared = ["model", "dataset"];
    let shown = null; // the page that is open: {key, body, questions, watchers}
    let status = null;

    /** A page: key, number (its place), title, and build(tools), which fills tools.body. */
    const add = (page) => { pages.push(page); pages.sort((a, b) => a.number - b.number); };

    // -- the state, which is the address, too --------------------------------------------------------------------------------

    function fromAddress() {
        const found = {};
        if (window.location.hash.startsWith(HASH + "?")) {
            for (const [key, value] of new URLSearchParams(window.location.hash.slice(HASH.length + 1))) found[key] = value;
        }
        return found;
    }

    function address() {
        const kept = Object.entries(state).filter(([, value]) => value !== "" && value !== null && value !== undefined);
        return HASH + "?" + new URLSearchParams(kept);
    }

    function set(key, value) {
        state[key] = String(value);
        window.history.replaceState(window.history.state, "", address());
        if (!shown) return;
        for (const watch of shown.watchers) watch(key);
        for (const question of shown.questions) question.ask();
    }

    const value = (key, otherwise) => (state[key] === undefined || state[key] === "" ? otherwise : state[key]);
    const numeric = (key, otherwise) => { const found = Number(value(key, otherwise)); return Number.isFinite(found) ? found : otherwise; };

    // -- questions: the newest one counts, one at a time -----------------------------------------------------------------------

    /** Ask for `part` whenever one of `keys` (or the model, or the dataset) changes; `show` gets the answer. */
    function question(page, part, keys, show, automatic) {
        let busy = false, wanted = null, last = "", line = null;
        const say = (message, kind) => {
            if (line) line.remove();
            line = message ? el("div", kind, message) : null;
            if (line) page.says.append(line);
        };
        const values = () => Object.fromEntries([...shared, ...keys].map((key) => [key, value(key, "")]).filter((pair) => pair[1] !== ""));
        async function go() {
            busy = true;
            while (wanted) {
                const now = wanted;
                wanted = null;
                const waiting = window.setTimeout(() => say(T("Computing…"), "ddpm-note"), 700);
                try {
                    const found = await get("understand", { part, ...now });
                    window.clearTimeout(waiting);
                    say("");
                    if (shown === page) show(found);
                } catch (failed) {
                    window.clearTimeout(waiting);
                    say(failed.message, "ddpm-failure");
                }
            }
            busy = false;
        }
        const ask = (again) => {
            const now = values(), key = JSON.stringify(now);
            if (!now.model || (key === last && !again)) return;
            last = key;
            wanted = now;
            if (!busy) go();
        };
        const found = { ask: automatic ? ask : () => {}, now: () => ask(true) };
        page.questions.push(found);
        return found;
    }

    // -- parts of pages --------------------------------------------------------------------------------------------------------

    /** A slider for a number of the state. */
    function slider(page, key, label, low, high, otherwise) {
        const input = el("input", "ddpm-range"), output = el("output", "ddpm-page");
        Object.assign(input, { type: "range", min: low, max: high, step: 1, value: numeric(key, otherwise) });
        input.setAttribute("aria-label", label);
        output.textContent = input.value;
        input.addEventListener("input", () => { output.textContent = input.value; set(key, input.value); });
        const node = el("label", "ddpm-slider", el("span", "", label), input, output);
        node.limit = (most) => {
            if (Number(input.max) === most) return;
            input.max = most;
            input.value = numeric(key, otherwise);
            output.textContent = input.value;
        };
        node.put = (number) => { input.value = number; output.textContent = input.value; set(key, input.value); };
        node.number = () => Number(input.value);
        return node;
    }

    /** A list for a word of the state; `choices`: [value, text]. */
    function picker(key, label, choices, otherwise) {
        const list = el("select", "ddpm-select");
        list.setAttribute("aria-label", label);
        for (const [one, text] of choices) list.append(option(one, text));
        list.value = value(key, otherwise);
        list.addEventListener("change", () => set(key, list.value));
        const node = el("label", "ddpm-picker", el("span", "", label), list);
        node.list = list;
        return node;
    }

    function option(one, text) {
        const found = el("option", "", text);
        found.value = one;
        return found;
    }

    const fresh = (key, label) => button(label, () => set(key, Math.floor(Math.random() * 4294967295)));

    /** An image with a caption. show(source), or piece(image, column, row, size): a part of a larger one. */
    function figure(caption, kind, rows) {
        const image = el("img", "ddpm-view"), text = el("figcaption", "", el("span", "", caption));
        image.alt = caption;
        const node = el("figure", "ddpm-figurebox" + (kind ? " " + kind : ""), rows ? el("div", "ddpm-scroll", image) : image, text);
        if (rows) node.style.setProperty("--rows", rows); // of small images: all in one height, however many there are
        node.show = (source) => { image.src = source; };
        node.piece = (whole, column, row, size) => {
            const canvas = document.createElement("canvas");
            [canvas.height, canvas.width] = size;
            canvas.getContext("2d").drawImage(whole, column * size[1], row * size[0], size[1], size[0], 0, 0, size[1], size[0]);
            image.src = canvas.toDataURL();
        };
        node.say = (more) => { if (text.childNodes.length > 1) text.lastChild.remove(); text.append(el("div", "ddpm-dim", more)); };
        return node;
    }

    const row = (...nodes) => el("div", "ddpm-views", ...nodes);

    /** A formula with what its letters mean and where it stands in the code. */
    function formula(text, source) {
        const parts = text.split(/_(\([^)]*\)|\w)/).map((part, i) => (i % 2 ? el("sub", "", part.replace(/[()]/g, "")) : part));
        return el("div", "ddpm-formula", el("span", "ddpm-maths", ...parts), el("div", "ddpm-dim", source));
    }

    const lead = (text) => el("p", "ddpm-lead", text);
    const aside = (text) => el("div", "ddpm-note", text);

    const SVG = "http://www.w3.org/2000/svg";

    function drawn(tag, attributes, text) {
        const node = document.createElementNS(SVG, tag);
        for (const [name, one] of Object.entries(attributes)) node.setAttribute(name, one);
        if (text !== undefined) node.textContent = text;
        return node;
    }

    const COLOURS = ["#f97316", "#3b82f6", "#10b981", "#a855f7"], DASHES = ["none", "9 3", "3 3", "none"]; // lines that lie upon each other show

    /** Curves: show(series, ends) with series [{label, points: [[x, y]], chosen}]; mark(x) moves the upright line. Logarithmic in y where `log`. */
    function chart(label, xLabel, log) {
        const W = 520, H = 200, L = 56, B = 30, TOP = 8, R = 10;
        const svg = drawn("svg", { viewBox: `0 0 ${W} ${H}`, class: "ddpm-chart", role: "img", "aria-label": label });
        const legend = el("div", "ddpm-line ddpm-keys");
        const node = el("div", "ddpm-chartbox", el("div", "ddpm-charttitle", label + (log ? " " + T("(logarithmic scale)") : "")), svg, legend);
        let X = null, at = null;
        const line = drawn("line", { class: "ddpm-marker", y1: TOP, y2: H - B });
        node.show = (series, ends) => {
            const values = series.flatMap((one) => one.points.map((p) => p[1])).filter((y) => !log || y > 0);
            const scale = log ? Math.log : (y) => y, most = Math.max(...values);
            // what is next to nothing must not press all else together
            const low = log ? scale(Math.max(Math.min(...values), most / 5000)) : Math.min(0, ...values), high = scale(most);
            const [first, last] = ends;
            X = (x) => L + (W - L - R) * (x - first) / Math.max(1e-9, last - first);
            const Y = (y) => H - B - (H - B - TOP) * (scale(Math.max(y, log ? Math.exp(low) : y)) - low) / Math.max(1e-9, high - low);
            const parts = [drawn("line", { class: "ddpm-rule", x1: L, y1: H - B, x2: W - R, y2: H - B })];
            for (const share of [0, 0.5, 1]) {
                const level = low + share * (high - low), y = H - B - share * (H - B - TOP);
                parts.push(drawn("line", { class: "ddpm-rule", x1: L, y1: y, x2: W - R, y2: y }),
                    drawn("text", { x: L - 6, y: y + 4, "text-anchor": "end" }, number(log ? Math.exp(level) : level)));
                const x = first + share * (last - first);
                if (Number.isInteger(x) || x > 20) parts.push(drawn("text", { x: X(x), y: H - B + 14, "text-anchor": share === 1 ? "end" : share ? "middle" : "start" }, Math.round(x)));
            }
            parts.push(drawn("text", { x: (L + W) / 2, y: H - 3, "text-anchor": "middle" }, xLabel));
            series.forEach((one, i) => {
                const points = one.points.map(([x, y]) => X(x).toFixed(1) + "," + Y(y).toFixed(1)).join(" ");
                if (one.points.length === 1) parts.push(drawn("circle", { cx: X(one.points[0][0]), cy: Y(one.points[0][1]), r: 3.5, fill: COLOURS[i % 4] }));
                parts.push(drawn("polyline", { class: "ddpm-curve", points, style: `stroke: ${COLOURS[i % 4]}; stroke-width: ${one.chosen === false ? 1.2 : 2.6}; stroke-dasharray: ${DASHES[i % 4]}` }));
            });
            svg.replaceChildren(...parts, line);
            legend.replaceChildren(...series.map((one, i) => {
                const key = el("span", "", one.label);
                key.style.setProperty("--colour", COLOURS[i % 4]);
                key.style.setProperty("--line", ["solid", "dashed", "dotted", "solid"][i % 4]);
                return key;
            }));
            if (at !== null) node.mark(at);
        };
        node.mark = (x) => {
            at = x;
            if (!X) return;
            line.setAttribute("x1", X(x));
            line.setAttribute("x2", X(x));
        };
        return node;
    }

    /** Load an image once and hand it over. */
    function loaded(source) {
        return new Promise((resolve, reject) => {
            const image = new Image();
            image.onload = () => resolve(image);
            image.onerror = reject;
            image.src = source;
        });
    }

    /** Which images these are, in a sentence. */
    function about(answer) {
        if (answer.stand_in) return T("The dataset of this model is not here, so its own samples stand in for images.");
        if (!answer.held) return T("The model was trained on this image; none are held out.");
        return (answer.held_out ? T("This image was held out: it was set aside and the model was not trained on it.") : T("The model was trained on this image.")) +
            " " + T("Held-out images are numbers 0 to") + " " + (answer.held - 1) + ".";
    }

    /** Sliders for the image and its timestep; follow(answer) gives them the ends that the answer names. */
    function lesson(page) {
        const image = slider(page, "image", T("Image"), 0, 0, 0), t = slider(page, "t", T("Timestep"), 0, 999, 500);
        return { sliders: [image, t], follow: (answer) => { image.limit(answer.count - 1); t.limit(answer.timesteps - 1); } };
    }

    // -- the frame -------------------------------------------------------------------------------------------------------------

    function build(node) {
        const models = picker("model", T("Model"), [], ""), datasets = picker("dataset", T("Dataset"), [], "");
        const nav = el("nav", "ddpm-toolbar ddpm-pages");
        nav.setAttribute("aria-label", T("Pages"));
        for (const page of pages) {
            const go = button(page.number + ". " + page.title, () => open(page.key));
            go.dataset.page = page.key;
            nav.append(go);
        }
        const body = el("section", "ddpm-understand");
        const link = button(T("Copy link"), async () => {
            try { await navigator.clipboard.writeText(window.location.href.split("#")[0] + address()); link.textContent = T("Link copied"); } catch (error) { window.prompt(T("Copy link"), window.location.href.split("#")[0] + address()); }
            window.setTimeout(() => { link.textContent = T("Copy link"); }, 1500);
        });
        const turn = (step) => {
            const at = pages.findIndex((page) => page.key === state.page) + step;
            if (pages[at]) { open(pages[at].key); node.scrollIntoView({ block: "start" }); }
        };
        const foot = el("div", "ddpm-toolbar", button(T("Previous page"), () => turn(-1)), button(T("Next page"), () => turn(1)), el("span", "ddpm-space"),
            link, button(T("Save as image"), () => keep(body)));
        node.replaceChildren(el("div", "ddpm-line", models, datasets), nav, body, foot);
        Object.assign(frame, { node, models: models.list, datasets: datasets.list, nav, body });
    }

    const frame = { node: null, models: null, datasets: null, nav: null, body: null };

    function open(key) {
        const page = pages.find((one) => one.key === key) || pages[0];
        state.page = page.key;
        for (const one of frame.nav.children) one.setAttribute("aria-current", one.dataset.page === page.key ? "page" : "false");
        const says = el("div", "ddpm-says");
        says.setAttribute("role", "status");
        const here = shown = { key: page.key, questions: [], watchers: [], says };
        const content = el("div", "");
        frame.body.replaceChildren(el("h3", "", page.title), content, says);
        page.build({
            body: content, state, set, value, numeric, figure, row, formula, lead, aside, chart, loaded, about, picker, fresh, status: () => status,
            slider: (...given) => slider(here, ...given),
            lesson: () => lesson(here),
            ask: (part, keys, show) => question(here, part, keys, show, true),
            onDemand: (part, keys, show) => question(here, part, keys, show, false),
            watch: (action) => here.watchers.push(action),
            isOpen: () => shown === here,
        });
        if (frame.node) window.history.replaceState(window.history.state, "", address());
        for (const one of here.questions) one.ask();
    }

    function choices(list, names, blank, key) {
        const wanted = [...(blank === null ? [] : [["", blank]]), ...names.map((name) => [name, name])];
        if (list.dataset.names === JSON.stringify(wanted)) return;
        list.dataset.names = JSON.stringify(wanted);
        list.replaceChildren(...wanted.map(([one, text]) => option(one, text)));
        list.value = value(key, "");
    }

    draw.understand = function (node, now) {
        status = now;
        if (node.offsetParent === null) return; // closed
        const first = !frame.body || !node.contains(frame.body);
        if (first) build(node);
        const chosen = window.ddpm.inputValue("ddpm_model");
        if (!now.models.includes(value("model", ""))) state.model = now.models.includes(chosen) ? chosen : now.models[0] || "";
        if (state.dataset && !now.datasets.includes(state.dataset)) state.dataset = "";
        choices(frame.models, now.models, null, "model");
        choices(frame.datasets, now.datasets, T("the model's own"), "dataset");
        if (frame.models.value !== state.model) frame.models.value = state.model;
        if (first || !shown) open(state.page);
        if (!now.models.length && !frame.nothing) frame.node.prepend(frame.nothing = el("div", "ddpm-failure", T("There is no model yet: train one in the Train tab, then look into it here.")));
        if (now.models.length && frame.nothing) { frame.nothing.remove(); frame.nothing = null; }
    };

    // -- a page as one image to keep -----------------------------------------------------------------------------------------------

    async function keep(body) {
        const views = [...body.querySelectorAll("figure")].filter((one) => one.querySelector("img[src]") && one.offsetParent !== null);
        const charts = [...body.querySelectorAll("svg.ddpm-chart")].filter((one) => one.offsetParent !== null);
        const style = getComputedStyle(body), W = 1040, PAD = 16;
        const ground = getComputedStyle(document.body).backgroundColor;
        const places = [], lines = [];
        let x = PAD, y = 56, tall = 0;
        for (const view of views) {
            const image = view.querySelector("img"), box = image.getBoundingClientRect();
            const width = Math.min(W - 2 * PAD, box.width), height = box.height * width / Math.max(1, box.width);
            if (x + width > W - PAD) { x = PAD; y += tall + PAD; tall = 0; }
            places.push({ image, x, y, width, height, caption: [...view.querySelector("figcaption").children].map((part) => part.textContent).join(", ") });
            x += width + PAD;
            tall = Math.max(tall, height + 34);
        }
        y += tall + PAD;
        for (const svg of charts) {
            const copy = svg.cloneNode(true);
            copy.setAttribute("width", 520);
            copy.setAttribute("height", 200);
            copy.prepend(drawn("style", {}, `text { font: 11px sans-serif; fill: ${style.color}; } .ddpm-curve { fill: none; } .ddpm-rule { stroke: #8888; } .ddpm-marker { stroke: ${style.color}; stroke-dasharray: 4 3; }`));
            const text = new XMLSerializer().serializeToString(copy);
            const box = svg.parentNode, keys = [...box.querySelectorAll(".ddpm-keys span")];
            places.push({ image: await loaded("data:image/svg+xml;charset=utf-8," + encodeURIComponent(text)), x: PAD, y, width: 520, height: 200, caption: box.firstChild.textContent });
            keys.forEach((key, i) => { lines.push({ text: "— " + key.textContent, colour: COLOURS[i % 4], x: 560, y: y + 30 + 22 * i }); });
            y += 200 + PAD + 24;
        }
        const canvas = el("canvas", "");
        for (const maths of body.querySelectorAll(".ddpm-maths")) {
            lines.push({ text: maths.textContent, colour: style.color, x: PAD, y: y + 14 });
            y += 30;
        }
        canvas.width = W;
        canvas.height = y;
        const pen = canvas.getContext("2d");
        pen.fillStyle = ground && !/rgba?\(0, 0, 0, 0\)/.test(ground) ? ground : "#ffffff";
        pen.fillRect(0, 0, W, y);
        pen.fillStyle = style.color;
        pen.font = "bold 20px sans-serif";
        pen.fillText(body.querySelector("h3").textContent + " – " + (state.model || ""), PAD, 34);
        pen.font = "13px sans-serif";
        pen.imageSmoothingEnabled = false;
        for (const place of places) {
            pen.drawImage(place.image, place.x, place.y, place.width, place.height);
            pen.fillText(place.caption, place.x, place.y + place.height + 18, Math.max(60, place.width));
        }
        for (const line of lines) {
            pen.fillStyle = line.colour;
            pen.fillText(line.text, line.x, line.y);
        }
        const link = el("a", "");
        link.href = canvas.toDataURL("image/png");
        link.download = "ddpm-" + state.page + ".png";
        link.click();
    }

    window.ddpm.understand = { add, open, keep, drawn };
})();
