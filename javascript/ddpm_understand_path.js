// Page 3: from noise to an image, step by step.
(function () {
    "use strict";

    const { T, el, button, number, figure: count } = window.ddpm;

    window.ddpm.understand.add({
        key: "path", number: 3, title: T("From noise to image"), build(page) {
            const samplers = [["ddim", "DDIM"], ["dpmpp_2m", "DPM++ 2M"], ["unipc", "UniPC"], ["ddpm", "DDPM"]];
            const sampler = page.picker("sampler", T("Sampling method"), samplers, "ddim"), steps = page.picker("steps", T("Sampling steps"), ["1", "2", "5", "10", "20", "30", "50"].map((count) => [count, count]), "20");
            const at = page.slider("step", T("Step"), 0, 20, 0);
            const state = page.figure(T("state: the image so far")), guess = page.figure(T("the network's guess of the image")), taken = page.figure(T("the change in this step (amplified)"));
            const numbers = el("div", "ddpm-line"), rule = el("div", "ddpm-note");
            const strip = page.figure(T("All steps. Top: the state. Middle: the guess. Bottom: the change"), "ddpm-wide", 3);
            const compared = el("div", "ddpm-views"), freely = page.aside(T("DDPM adds fresh noise in every step, so the same beginning leads it to another image.")), moved = page.chart(T("How much each step changes"), T("step"));
            let whole = null, found = null, playing = null;
            function draw() {
                if (!whole || !found) return;
                const last = found.steps, i = Math.min(at.number(), last), now = found.numbers[i];
                state.piece(whole, i, 0, found.size);
                guess.piece(whole, i, 1, found.size);
                taken.piece(whole, i, 2, found.size);
                moved.mark(i);
                if (!now) {
                    numbers.replaceChildren(el("strong", "", T("Done: this is the image.")));
                    rule.textContent = "";
                    return;
                }
                numbers.replaceChildren(count(T("timestep"), now.t), count(T("times the image (√ᾱ)"), number(now.alpha)), count(T("times the noise (√(1 − ᾱ))"), number(now.sigma)), count(T("change of the guess"), number(now.guess_moved)));
                rule.textContent = T("The same, rewritten with the numbers of this step:") + " " + T("next state") + " = " + number(now.of_state) + " × " + T("state") + " + " + number(now.of_guess) + " × " + T("guess") + ". " +
                    (found.sampler === "ddim" ? "" : found.sampler === "ddpm" ? T("That is DDIM's rule; DDPM also adds fresh noise.") : T("That is DDIM's rule. This sampler also corrects it by the guesses before."));
            }
            const play = button(T("Play"), () => {
                if (playing) { window.clearInterval(playing); playing = null; play.textContent = T("Play"); return; }
                at.put(0);
                play.textContent = T("Pause");
                playing = window.setInterval(() => {
                    if (!page.isOpen() || !found || at.number() >= found.steps) { window.clearInterval(playing); playing = null; play.textContent = T("Play"); return; }
                    at.put(at.number() + 1);
                }, 250);
            });
            const versus = page.onDemand("path/compare", ["sampler", "steps", "seed", "what"], (answer) => {
                freely.hidden = answer.what !== "samplers";
                compared.replaceChildren(...answer.images.map((one) => {
                    const view = page.figure(answer.what === "steps" ? T("steps:") + " " + one.label : one.label);
                    view.show(one.image);
                    return view;
                }));
            });
            const compare = (what, label) => button(label, () => { page.state.what = what; versus.now(); });
            const kept = page.onDemand("path/animation", ["sampler", "steps", "seed"], (answer) => {
                const link = el("a", "");
                link.href = answer.animation;
                link.download = "denoising.webp";
                link.click();
            });
            page.body.append(
                page.lead(T("Sampling runs the noising backwards, from pure noise. At each step the network guesses the clean image; the sampler moves a little towards that guess, keeps the rest of the noise, and asks again. The first guess is a rough mixture of everything the network knows. Later guesses get sharper.")),
                el("div", "ddpm-controls", sampler, steps, page.fresh("seed", T("New noise"))), el("div", "ddpm-controls", at, play, button(T("Save animation"), () => kept.now(), T("Nine images from noise, as an animated WebP"))),
                page.row(state, guess, taken), numbers,
                page.formula("next state = √ᾱ · x̂₀ + √(1 − ᾱ) · ε̂", T("A hat marks what the network guesses: x̂₀ the image, ε̂ the noise. Song et al. 2021 (DDIM), equation 12; in the code: ddim in sampling/samplers.py")),
                rule, page.aside(T("The change takes noise away and adds a part of the guess, so the guess shows in it. Grey means no change.")), strip, moved,
                el("h4", "", T("The same noise")), el("div", "ddpm-toolbar", compare("samplers", T("by each sampler")), compare("steps", T("in more and more steps"))), compared, freely,
                page.aside(T("In a single step the network must guess the whole image from noise, and answers with a rough mixture of all it knows. More steps let it decide one thing after another. Beyond about twenty, little changes.")));
            page.ask("path", ["sampler", "steps", "seed"], async (answer) => {
                whole = await page.loaded(answer.picture);
                found = answer;
                strip.show(answer.picture);
                at.limit(answer.steps);
                moved.show([{ label: T("the state"), points: answer.numbers.map((one, i) => [i, one.taken]) }, { label: T("the guess"), points: answer.numbers.map((one, i) => [i, one.guess_moved]).slice(1) }], [0, Math.max(1, answer.steps)]);
                draw();
            });
            page.watch((key) => { if (key === "step") draw(); else { compared.replaceChildren(); freely.hidden = true; } });
            freely.hidden = true;
        },
    });
})();
