// Pictures of items: those that come into sight together are asked for in one request. Sixty requests would cost the server,
// and a training on it, ten times as much, and a browser sends six at a time.
(function () {
    "use strict";

    const { url } = window.ddpm;
    const TOGETHER = 30;
    const AHEAD = "400px 0px"; // of the window: what scrolling shows next
    const MOST_BYTES = 256 * 2 ** 20; // kept for pages that are drawn again; sixty of the largest copies have half of that
    const LONGEST = 30000; // milliseconds for one request, of a second's work

    const kept = new Map(); // key -> { source, bytes }, what was not shown for longest first
    const asked = new WeakMap(); // image -> what it shall show
    const wanted = new Map(); // key -> { what, images }, not yet sent for
    let sent = new Map(); // the same, on their way
    let bytes = 0;
    let busy = false;
    let stop = null; // ends the request on its way

    const observer = new IntersectionObserver((entries) => {
        for (const entry of entries) {
            if (!entry.isIntersecting) continue;
            observer.unobserve(entry.target);
            want(entry.target);
        }
        if (stop && wanted.size && !isSeen([...sent.values()])) stop.abort(); // the page was left
        window.setTimeout(sendAll, 0); // when all that was to come with these has come
    }, { rootMargin: AHEAD });

    const isSeen = (ones) => ones.some((one) => one.images.some((image) => image.isConnected));

    function fill(image, what, source) {
        image.alt = what.file;
        image.src = source;
    }

    const alone = (what) => url("thumb", { dataset: what.dataset, id: what.id, v: what.version, size: what.size, crop: what.crop });

    function keep(key, data) {
        const type = data[0] === 0x52 ? "image/webp" : "image/png"; // RIFF
        const source = URL.createObjectURL(new Blob([data], { type }));
        kept.set(key, { source, bytes: data.length });
        bytes += data.length;
        for (const [old, picture] of kept) {
            if (bytes <= MOST_BYTES || old === key) break;
            URL.revokeObjectURL(picture.source); // where it is shown it stays
            kept.delete(old);
            bytes -= picture.bytes;
        }
        return source;
    }

    function want(image) {
        const { key, what } = asked.get(image);
        if (kept.has(key)) { fill(image, what, kept.get(key).source); return; }
        const one = wanted.get(key) || sent.get(key) || { what, images: [] };
        one.images.push(image);
        if (!sent.has(key)) wanted.set(key, one);
    }

    /** The next ones that one request can ask for: of one dataset, in one size; none of a page that was left. */
    function nextBatch() {
        const batch = new Map();
        let first = null;
        for (const [key, one] of wanted) {
            if (!isSeen([one])) { wanted.delete(key); continue; }
            const { what } = one;
            first = first || what;
            if (what.dataset !== first.dataset || what.size !== first.size || what.crop !== first.crop) continue;
            wanted.delete(key);
            batch.set(key, one);
            if (batch.size === TOGETHER) break;
        }
        return batch;
    }

    async function sendAll() {
        if (busy) return;
        busy = true;
        for (sent = nextBatch(); sent.size; sent = nextBatch()) {
            try { await send(); } catch (error) { /* asked for one by one below */ }
            // what has not come: the browser shows that it is broken, or asks again
            for (const { what, images } of sent.values()) {
                for (const image of images) if (image.isConnected) fill(image, what, alone(what));
            }
        }
        busy = false;
    }

    async function received(query) {
        stop = new AbortController();
        const timer = window.setTimeout(() => stop.abort(), LONGEST);
        try {
            const response = await fetch(url("thumbs", query), { credentials: "same-origin", signal: stop.signal });
            const kind = response.headers.get("content-type") || "";
            if (!response.ok || !kind.startsWith("application/octet-stream")) throw new Error("no pictures"); // a proxy's page
            return new Uint8Array(await response.arrayBuffer());
        } finally {
            window.clearTimeout(timer);
            stop = null;
        }
    }

    async function send() {
        const batch = [...sent];
        const all = batch.map(([, one]) => one.what);
        const { dataset, size, crop } = all[0];
        const query = { dataset, ids: all.map((what) => what.id).join(), v: all.map((what) => what.version).join(), size, crop };
        const data = await received(query);
        const view = new DataView(data.buffer);
        let at = 0;
        for (const [key, one] of batch) {
            if (at === data.length && at > 0) { // they were large: the rest is asked for next
                sent.delete(key);
                wanted.set(key, one);
                continue;
            }
            const length = view.getUint32(at);
            if (at + 4 + length > data.length) throw new Error("cut off");
            const part = data.subarray(at + 4, at + 4 + length);
            at += 4 + length;
            if (!length) continue;
            sent.delete(key);
            const source = keep(key, part);
            one.images.forEach((image) => fill(image, one.what, source));
        }
    }

    /** Show an item's picture in an image as soon as that comes into sight. ``what``: dataset, id, version, size, crop, file. */
    window.ddpm.show = function (image, what) {
        const key = [what.dataset, what.id, what.version, what.size, what.crop].join("/");
        asked.set(image, { key, what });
        image.setAttribute("aria-label", what.file);
        const there = kept.get(key);
        if (!there) { observer.observe(image); return; }
        kept.delete(key);
        kept.set(key, there);
        fill(image, what, there.source);
    };
})();
