// Generate sub-tab: drawing a mask over the image to start from, alike on every gradio. The mask goes into a hidden field as a PNG.
(function () {
    "use strict";

    const { T, draw, root, el, button } = window.ddpm;
    const LEAST = 256, MOST = 1024; // pixels of the mask's longer side; the server brings it to the image's size
    let shown = ""; // the image that is drawn on
    let strokes = []; // each with its width and points, in pixels of the mask
    let canvas = null, mask = null, size = null, at = null;

    function write(text) {
        const field = root().querySelector("#ddpm_mask_data textarea, #ddpm_mask_data input");
        if (!field || field.value === text) return;
        field.value = text;
        field.dispatchEvent(new Event("input", { bubbles: true }));
    }

    function trace(context, style) {
        context.lineCap = context.lineJoin = "round";
        context.strokeStyle = context.fillStyle = style;
        for (const { width, points } of strokes) {
            context.lineWidth = width;
            context.beginPath();
            if (points.length === 1) context.arc(points[0][0], points[0][1], width / 2, 0, 2 * Math.PI);
            points.forEach(([x, y], number) => (number ? context.lineTo(x, y) : points.length > 1 && context.moveTo(x, y)));
            if (points.length === 1) context.fill(); else context.stroke();
        }
    }

    function redraw() {
        const context = canvas.getContext("2d");
        context.clearRect(0, 0, canvas.width, canvas.height);
        trace(context, "#ff7a00");
        if (at && document.activeElement === canvas) { // where the arrow keys have brought the brush
            context.strokeStyle = "#ffffff"; context.lineWidth = 2;
            context.beginPath(); context.arc(at[0], at[1], width() / 2, 0, 2 * Math.PI); context.stroke();
        }
    }

    function keep() {
        redraw();
        const context = mask.getContext("2d");
        context.fillStyle = "#000000";
        context.fillRect(0, 0, mask.width, mask.height);
        trace(context, "#ffffff");
        write(strokes.length ? mask.toDataURL("image/png") : "");
    }

    const width = () => Number(size.value) / 100 * canvas.width;
    const place = (event) => [event.offsetX / canvas.clientWidth * canvas.width, event.offsetY / canvas.clientHeight * canvas.height];

    function listen() {
        canvas.addEventListener("pointerdown", (event) => {
            canvas.setPointerCapture(event.pointerId);
            strokes.push({ width: width(), points: [place(event)] });
            redraw();
        });
        canvas.addEventListener("pointermove", (event) => {
            if (!canvas.hasPointerCapture(event.pointerId)) return;
            strokes[strokes.length - 1].points.push(place(event));
            redraw();
        });
        canvas.addEventListener("pointerup", keep);
        canvas.addEventListener("pointercancel", keep);
        canvas.addEventListener("focus", redraw);
        canvas.addEventListener("blur", redraw);
        canvas.addEventListener("keydown", (event) => {
            const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
            if (!way && event.key !== " ") return;
            event.preventDefault();
            at = at || [canvas.width / 2, canvas.height / 2];
            if (way) {
                at = at.map((value, axis) => Math.min(Math.max(value + way[axis] * width() / 2, 0), axis ? canvas.height : canvas.width));
                redraw();
            } else {
                strokes.push({ width: width(), points: [at] });
                keep();
            }
        });
    }

    function build(node, image) {
        const scale = Math.min(MOST, Math.max(LEAST, image.naturalWidth, image.naturalHeight)) / Math.max(image.naturalWidth, image.naturalHeight);
        canvas = el("canvas");
        mask = document.createElement("canvas");
        canvas.width = mask.width = Math.max(1, Math.round(scale * image.naturalWidth));
        canvas.height = mask.height = Math.max(1, Math.round(scale * image.naturalHeight));
        canvas.tabIndex = 0;
        canvas.setAttribute("role", "application");
        canvas.setAttribute("aria-label", T("Mask: draw on the image. With the keyboard, arrow keys move the brush and Space paints."));
        size = el("input");
        Object.assign(size, { type: "range", min: 2, max: 50, value: 12 });
        const copy = el("img");
        Object.assign(copy, { src: image.src, alt: "" });
        listen();
        const change = (action) => () => { action(); keep(); };
        node.replaceChildren(
            el("div", "ddpm-mask", copy, canvas),
            el("div", "ddpm-line", el("label", "ddpm-line", el("span", "", T("Brush size")), size),
                button(T("Undo"), change(() => strokes.pop())), button(T("Clear the mask"), change(() => { strokes = []; }))));
    }

    draw.mask = function (node) {
        const image = root().querySelector("#ddpm_edited img");
        const source = image && image.complete && image.naturalWidth ? image.src : "";
        if (source === shown && (!source || node.firstChild)) return;
        shown = source;
        strokes = [];
        at = null;
        write("");
        if (source) build(node, image); else node.replaceChildren();
    };
})();
