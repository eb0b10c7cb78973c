// Page 4: a run as a film: the same noise at each preview, with the losses.
(function () {
    "use strict";

    const { T, el, button, get, url } = window.ddpm;

    window.ddpm.understand.add({
        key: "film", number: 4, title: T("Your run as a film"), build(page) {
            const at = page.slider("frame", T("Frame"), 0, 0, 0), view = page.figure(T("The same noise, sampled during the training"), "ddpm-wide", 2);
            const curves = page.chart(T("Loss: how wrong the network's answers are"), T("step"), true), says = el("div", "ddpm-note");
            const there = el("div", "", el("div", "ddpm-controls", at), view, curves);
            let steps = [], playing = null, model = "";
            function draw() {
                if (!steps.length) return;
                const step = steps[Math.min(at.number(), steps.length - 1)];
                view.show(url("preview", { model, step }));
                view.say(T("step") + " " + step);
                curves.mark(step);
            }
            const play = button(T("Play"), () => {
                if (playing) { window.clearInterval(playing); playing = null; play.textContent = T("Play"); return; }
                at.put(0);
                play.textContent = T("Pause");
                playing = window.setInterval(() => {
                    if (!page.isOpen() || at.number() >= steps.length - 1) { window.clearInterval(playing); playing = null; play.textContent = T("Play"); return; }
                    at.put(at.number() + 1);
                }, 400);
            });
            there.firstChild.append(play);
            async function load() {
                model = page.value("model", "");
                let found = null;
                try { found = await get("curves", { model }); } catch (failed) { found = { previews: [], train: [], seen: [], heldout: [] }; }
                if (!page.isOpen()) return;
                steps = found.previews;
                there.hidden = !steps.length;
                says.textContent = steps.length ? T("Usually colours come first, then the layout, then the detail. If the loss on held-out images (set aside, never trained on) rises while that on training images still falls, the model has begun to copy.")
                    : T("The run of this model is not in this workspace, so there is no film of it. Choose a model that you trained here, or train one: each preview becomes a frame.");
                if (!steps.length) return;
                at.limit(steps.length - 1);
                const series = [{ label: T("training images"), points: found.seen }, { label: T("held-out images"), points: found.heldout }].filter((one) => one.points.length);
                if (!series.length) series.push({ label: T("single batches"), points: found.train });
                const last = Math.max(...steps, ...series.map((one) => one.points[one.points.length - 1][0]));
                curves.show(series, [0, last]);
                draw();
            }
            page.body.append(
                page.lead(T("While a model trains, it samples from the same noise again and again. Played in order, these previews show how it learned.")), there, says);
            page.watch((key) => { if (key === "frame") draw(); if (key === "model") load(); });
            load();
        },
    });
})();
