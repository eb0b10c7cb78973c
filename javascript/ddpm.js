// The live parts of the DDPM tab: what all sub-tabs share, and the loop that asks the server and draws.
// The server holds all state; this draws it, so a reload, a second page or a lost connection changes nothing.
// Plain scripts: the WebUI loads every file of this folder in the order of names; the standalone page loads them too.
window.ddpm = (function () {
    "use strict";

    const BASE = "./ddpm/ui/"; // below the page, wherever a proxy has put it
    const draw = {}; // kind of live place -> (node, status) => void; the other files add theirs
    const ticks = []; // called after each drawing, with the status
    let status = null;
    let connected = true;
    let lists = "";

    /** The text in the language of the WebUI. Every text that a person sees goes through here as one constant. */
    const T = (text) => (window.localization && window.localization[text]) || text;

    const REASONS = {
        undecodable: T("not readable"), too_small: T("too small"), extreme_aspect: T("too long and narrow"), bomb: T("too large"),
        blank: T("blank"), noise: T("noise"), duplicate: T("exact duplicate"), user: T("rejected by you"),
    };

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

    function figure(label, value) {
        return el("span", "ddpm-figure", el("strong", "", value), " ", el("span", "", label));
    }

    function url(name, values) {
        const query = new URLSearchParams(values || {});
        return BASE + name + (query.toString() ? "?" + query : "");
    }

    async function answer(response) {
        let body = null;
        try { body = await response.json(); } catch (error) { /* told below */ }
        if (!response.ok) {
            const refusal = new Error((body && body.error) || T("The server answered") + " " + response.status + ".");
            refusal.answered = true;
            throw refusal;
        }
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

    const TITLES = {
        harvest: T("Harvesting into"), collect: T("Generating for"), train: T("Training"), sample: T("Generating with"), evaluate: T("Evaluating"),
    };

    const title = (job) => el("strong", "", TITLES[job.kind], " ", job.subject);

    const isRunning = (job) => Boolean(job) && (job.state === "running" || job.state === "queued");

    function progress(job) {
        const running = isRunning(job);
        const box = el("div", "ddpm-progress");
        if (running) {
            const bar = el("div", "ddpm-bar", el("div", "ddpm-fill"));
            bar.firstChild.style.width = (100 * job.fraction).toFixed(1) + "%";
            box.append(bar);
        }
        const words = { queued: T("waiting"), running: "", done: T("finished"), failed: T("failed"), stopped: job.result && ["train", "harvest", "collect"].includes(job.kind) ? T("stopped and saved") : T("stopped") };
        const line = el("div", "ddpm-line", title(job), words[job.state] ? " " : null, words[job.state] || null);
        const p = job.progress || {};
        if (running) {
            if (p.text) line.append(el("span", "", T(p.text)));
            if (p.total) line.append(el("span", "", p.total < 1e9 ? p.done + " / " + p.total : String(p.done)));
            if (job.seconds_left !== null) line.append(el("span", "", duration(job.seconds_left)), el("span", "", T("remaining")));
            if (job.stopping) line.append(el("span", "", T("stopping, saving the work")));
        } else {
            line.append(el("span", "", duration(job.elapsed)));
        }
        box.append(line);
        for (const text of job.messages) box.append(el("div", "ddpm-note", text));
        if (job.error) box.append(el("div", "ddpm-failure", job.error));
        return box;
    }

    const jobKey = (job) => job && [job.id, job.state, job.progress, job.messages.length, job.error, job.stopping];

    // -- the loop --------------------------------------------------------------------------------------------------------

    /** One part that cannot be drawn must not keep the others from it. */
    function apart(action) {
        try { action(); } catch (error) { console.error("ddpm", error); }
    }

    function drawAll() {
        if (!status) return;
        for (const node of root().querySelectorAll("[data-ddpm]")) {
            if (draw[node.dataset.ddpm]) apart(() => draw[node.dataset.ddpm](node, status));
        }
        for (const tick of ticks) apart(() => tick(status));
        const trained = status.jobs.train && status.jobs.train.state === "done" ? status.jobs.train.id : 0;
        const now = JSON.stringify([status.datasets, status.models, status.upscalers, status.adapters, trained]);
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

    /** Which thumbnail of the results is selected; -1 for none. */
    function selected() {
        const gallery = byId("ddpm_gallery");
        const strip = gallery && (gallery.querySelector(".thumbnails") || gallery.querySelector(".grid-container"));
        return strip ? [...strip.querySelectorAll("button.thumbnail-item")].findIndex((item) => item.classList.contains("selected")) : -1;
    }

    /** Open a sub-tab; whether it is there, or has no such name. */
    function openTab(name) {
        const number = ["dataset", "train", "generate", "understand"].indexOf(name);
        const buttons = root().querySelectorAll("#ddpm_tabs > .tab-nav button, #ddpm_tabs [role=tab]");
        if (number >= 0 && buttons[number]) buttons[number].click();
        return number < 0 || buttons.length > number;
    }

    /** An address that ends in #ddpm_tab_generate opens that sub-tab, once. */
    const openNamed = () => openTab((/^#ddpm_tab_(\w+)/.exec(window.location.hash) || [])[1]);

    let opened = false;

    const PAGE = Math.random().toString(36).slice(2);

    async function poll() {
        let wait = 1500;
        if (byId("ddpm_tab")) {
            opened = opened || openNamed();
            try {
                status = await get("status", { page: PAGE });
                if (!connected) offline("");
                connected = true;
                const busy = Object.values(status.jobs).some((job) => job.state === "running" || job.state === "queued");
                // the server asks for patience where many pages are open
                wait = Math.max(status.wait || 0, document.hidden ? 4000 : busy ? 500 : 1200);
            } catch (error) {
                // a server that restarts, a laptop that slept: it goes on where it was when the answer comes
                connected = false;
                offline(error.answered ? error.message : T("No connection to the server. Retrying; jobs on the server continue.") + " (" + error.message + ")");
                wait = 2000;
            }
            apart(drawAll);
        }
        window.setTimeout(poll, wait);
    }

    poll();

    return { T, REASONS, draw, ticks, root, byId, el, button, figure, url, get, post, duration, number, inputValue, redraw, progress, isRunning, jobKey, selected, openTab };
})();
