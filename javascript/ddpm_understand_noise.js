// Page 1: an image under more and more noise.
(function () {
    "use strict";

    const { T, el, number, figure: count } = window.ddpm;
    const NAMES = { linear: T("linear"), cosine: T("cosine"), quadratic: T("quadratic"), sigmoid: T("sigmoid") };

    window.ddpm.understand.add({
        key: "noise", number: 1, title: T("Noise"), build(page) {
            const chosen = page.lesson();
            const schedule = page.picker("schedule", T("Noise schedule"), [["", T("the model's own")], ...Object.entries(NAMES)], "");
            const clean = page.figure(T("image x₀")), noise = page.figure(T("noise ε")), mixed = page.figure(T("noised image, at once")), slow = page.figure(T("noised image, step by step"));
            const figures = el("div", "ddpm-line"), which = el("div", "ddpm-note"), same = el("div", "ddpm-note");
            const curves = page.chart(T("How much of the image is left (ᾱ) at each timestep"), T("timestep"));
            page.body.append(
                page.lead(T("A diffusion model learns to remove noise, so training begins by adding it. The timestep says how much: at 0 almost everything is image, at the last one almost everything is noise. Move the slider.")),
                el("div", "ddpm-controls", ...chosen.sliders, schedule, page.fresh("seed", T("New noise"))),
                page.row(clean, noise, mixed, slow), figures, which,
                page.formula("x_t = √ᾱ_t · x_0 + √(1 − ᾱ_t) · ε", T("x₀ is the image, ε the noise, t the timestep. ᾱ (“alpha bar”) and 1 − ᾱ are the shares of image and noise and add up to 1; the factors are their square roots. Ho et al. 2020, equation 4; in the code: Diffusion.add_noise")),
                curves,
                page.aside(T("The noise schedule says how fast the image disappears. If it is too fast, many timesteps show only noise and teach nothing. If it is too slow, noise remains too weak at the end, and sampling could not start from pure noise. Compare the curves.")),
                same,
                page.aside(T("The more timesteps there are, the smaller is each. Training uses all of them; sampling goes back in fewer, larger steps (page 3).")));
            page.ask("noise", ["image", "t", "schedule", "seed"], (found) => {
                chosen.follow(found);
                clean.show(found.x0);
                noise.show(found.noise);
                mixed.show(found.at_once);
                slow.show(found.stepwise);
                const snr = found.snr === null ? "∞" : found.snr >= 1000 ? Math.round(found.snr).toLocaleString() : number(found.snr);
                figures.replaceChildren(count("ᾱ", number(found.alpha_bar)), count(T("times the image (√ᾱ)"), number(found.alpha)), count(T("times the noise (√(1 − ᾱ))"), number(found.sigma)), count(T("signal to noise (ᾱ / (1 − ᾱ))"), snr));
                which.textContent = page.about(found);
                schedule.list.options[0].textContent = T("the model's own") + " (" + NAMES[found.own_schedule] + ")";
                same.replaceChildren(el("span", "", T("Adding all noise at once or in many small steps gives the same kind of image, so training can jump straight to any timestep. The noise measures")), " ",
                    el("strong", "", number(found.spread.at_once)), " ", el("span", "", T("at once and")), " ", el("strong", "", number(found.spread.stepwise)), " ",
                    el("span", "", T("step by step; expected:")), " ", el("strong", "", number(found.sigma)), ".");
                const last = found.timesteps - 1;
                curves.show(Object.entries(found.curves).map(([name, values]) => ({
                    label: NAMES[name] + (name === found.own_schedule ? " " + T("(this model)") : ""), chosen: name === found.schedule,
                    points: values.map((y, i) => [i * last / (values.length - 1), y]),
                })), [0, last]);
                curves.mark(found.t);
            });
        },
    });
})();
