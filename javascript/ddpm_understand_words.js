// Page 6: what words do at each step, and what guidance makes of it.
(function () {
    "use strict";

    const { T, el, button, number, get } = window.ddpm;

    window.ddpm.understand.add({
        key: "words", number: 6, title: T("Words"), build(page) {
            const field = el("input", "ddpm-search ddpm-prompt-field");
            field.type = "text";
            field.setAttribute("aria-label", T("Prompt"));
            field.placeholder = T("words that the model knows");
            field.value = page.value("prompt", "");
            const scale = page.slider("scale", T("CFG scale"), 0, 10, 2), step = page.slider("wordstep", T("Step"), 0, 11, 0);
            const view = page.figure(T("at this CFG scale")), strip = page.figure(T("The same noise at CFG scales 0, 1, 2, … 10"), "ddpm-wide", 2);
            const guess = page.figure(T("the guess with the words")), added = page.figure(T("what the words add to it")), where = page.figure(T("where")), known = el("div", "ddpm-words"), said = el("div", "ddpm-note");
            const sizes = page.chart(T("How much the words change the guess"), T("step"));
            let whole = null, parts = null, found = null;
            function draw() {
                if (!whole || !found) return;
                view.piece(whole, Math.min(scale.number(), found.scales.length - 1), 0, found.size);
                const i = Math.min(step.number(), found.sizes.length - 1);
                guess.piece(parts.guesses, i, 0, found.size);
                added.piece(parts.added, i, 0, found.size);
                where.piece(parts.changes, i, 0, found.size);
                sizes.mark(i);
            }
            const ask = page.onDemand("words", ["prompt", "seed"], async (answer) => {
                whole = await page.loaded(answer.images);
                parts = { guesses: await page.loaded(answer.guesses), added: await page.loaded(answer.added), changes: await page.loaded(answer.changes) };
                found = answer;
                strip.show(answer.images);
                step.limit(answer.sizes.length - 1);
                said.textContent = (answer.words.length ? T("Words that it was told:") + " " + answer.words.map((word) => word.split(" | ")[0]).join(", ") : "") + (answer.unknown.length ? ". " + T("Words that it does not know:") + " " + answer.unknown.join(", ") : "");
                sizes.show([{ label: T("all pixels together"), points: answer.sizes.map((y, i) => [i, y]) }], [0, Math.max(1, answer.sizes.length - 1)]);
                draw();
            });
            const go = () => { page.state.prompt = field.value; ask.now(); };
            field.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); go(); } });
            async function words() {
                const model = page.value("model", "");
                let entries = [];
                try { entries = (await get("model_words", { model })).words; } catch (failed) { /* said below, by the question */ }
                known.replaceChildren(...entries.slice(0, 24).map((entry) => {
                    const word = entry.split(" | ")[0];
                    const chip = button(word, () => {
                        const there = field.value.split(",").map((piece) => piece.trim()).filter(Boolean);
                        const at = there.indexOf(word);
                        if (at >= 0) there.splice(at, 1); else there.push(word);
                        field.value = there.join(", ");
                        go();
                    });
                    chip.classList.add("ddpm-word");
                    return chip;
                }));
                if (!page.isOpen()) return;
                go();
            }
            page.body.append(
                page.lead(T("A model with words was trained with them for most images and without them for some. So it has two opinions of every noised image: one with the words, one without. Guidance takes the difference and goes further in that direction.")),
                el("div", "ddpm-controls", field, button(T("Show"), go), page.fresh("seed", T("New noise"))), known, said,
                el("div", "ddpm-controls", scale), page.row(view, strip),
                page.formula("u + w · (c − u)", T("Ho & Salimans 2022: c with words, u without, w the CFG scale; in the code: Asked in sampling/guidance.py")),
                page.aside(T("At 0 the words are ignored; at 1 the network is simply told them. A little more makes them show reliably. Much more makes colours glaring and images alike, since the difference is amplified whether it is right or not.")),
                el("h4", "", T("What the words add, step by step")), el("div", "ddpm-controls", step), page.row(guess, added, where), sizes,
                page.aside(T("Colours and layout are decided in the first steps, so the words matter most there. In the last steps almost everything is settled.")));
            page.watch((key) => { if (key === "scale" || key === "wordstep") draw(); if (key === "model") words(); if (key === "seed") go(); });
            words();
        },
    });
})();
