// Page 2: what a training shows its network, and what the network answers.
(function () {
    "use strict";

    const { T, el, button, number, get } = window.ddpm;
    const KINDS = [["epsilon", T("noise ε")], ["v", T("velocity v")], ["x0", T("image x₀")]];

    window.ddpm.understand.add({
        key: "pair", number: 2, title: T("What the network sees"), build(page) {
            const chosen = page.lesson();
            const clean = page.figure(T("image x₀")), noise = page.figure(T("noise ε")), mixed = page.figure(T("noised image"), "ddpm-seenbox"), map = page.figure(T("error of the image"));
            const truth = KINDS.map(([, label]) => page.figure(label)), said = KINDS.map(([, label]) => page.figure(label));
            const which = el("div", "ddpm-note"), own = el("div", "ddpm-note");
            const curves = page.chart(T("Mean squared error at each timestep"), T("timestep"), true);
            page.body.append(
                page.lead(T("Training repeats one exercise: take an image, draw a random timestep and random noise, and mix them. The network sees the noised image and the timestep, and must separate the noise from the image. That is all it ever learns.")),
                el("div", "ddpm-controls", ...chosen.sliders, page.fresh("seed", T("New noise"))),
                el("h4", "", T("One training example")), page.row(clean, noise, mixed), which,
                el("h4", "", T("The right answer, written in three ways")), page.row(...truth),
                el("h4", "", T("The network's answer")), page.row(...said, map), own,
                page.aside(T("All three say the same: given one of them, the noised image and the timestep, the other two follow. They differ in what is hard. The noise is easy to see where there is much of it, the image where there is little noise. v (“velocity”, the direction in which the image turns into noise) is always close to the harder of the two, so the network has something to learn at every timestep.")),
                page.formula("v = √ᾱ_t · ε − √(1 − ᾱ_t) · x₀", T("Salimans & Ho 2022, appendix D; in the code: Epsilon, Velocity and Image in model/prediction.py; the loss: model/loss.py")),
                curves, el("h4", "", T("Guess the timestep")), guess(page));
            page.ask("pair", ["image", "t", "seed"], (found) => {
                chosen.follow(found);
                clean.show(found.x0);
                noise.show(found.noise);
                mixed.show(found.x);
                map.show(found.map);
                KINDS.forEach(([name], i) => {
                    truth[i].show(found.truth[name]);
                    said[i].show(found.said[name]);
                    said[i].say(T("error") + " " + number(found.error[name]));
                });
                which.textContent = page.about(found);
                own.replaceChildren(el("span", "", T("This model answers with")), " ", el("strong", "", KINDS.find(([name]) => name === found.prediction)[1]), "; ",
                    el("span", "", T("the other two are computed from it. The map shows where its image is wrong: black is right, yellow is far off.")));
                curves.mark(found.t);
            });
            page.ask("pair/levels", [], (found) => {
                curves.show(KINDS.map(([name, label]) => ({ label, points: found.times.map((x, i) => [x, found.error[name][i]]) })), [found.times[0], found.times[found.times.length - 1]]);
            });
        },
    });

    /** A noised image whose timestep the reader guesses, as the network needs not: it is told. */
    function guess(page) {
        const box = el("div", ""), view = page.figure(T("At which timestep is this?")), says = el("div", "ddpm-line");
        says.setAttribute("role", "status");
        let hidden = null, last = 999;
        const mine = page.slider("guess", T("Your guess"), 0, 999, 500);
        const check = button(T("Check"), () => {
            if (!hidden) return;
            const off = Math.abs(mine.number() - hidden.t);
            says.replaceChildren(el("span", "", T("It was"), " ", el("strong", "", hidden.t), "; ", T("you were off by"), " ", el("strong", "", off), "."),
                el("span", "", off < 0.05 * last ? T("Very good: the noise tells its own strength.") : T("The network is told the timestep, so it need not guess.")));
        });
        const again = button(T("Show a noised image"), async () => {
            const drawn = Math.floor(Math.random() * (last + 1));
            try {
                const found = await get("understand", { part: "noise", model: page.value("model", ""), dataset: page.value("dataset", ""), image: Math.floor(Math.random() * 500), seed: Math.floor(Math.random() * 1e9), t: drawn });
                last = found.timesteps - 1;
                mine.limit(last);
                hidden = { t: Math.min(drawn, last) };
                view.show(found.at_once);
                says.replaceChildren();
                view.hidden = mine.hidden = check.hidden = false;
            } catch (failed) { says.replaceChildren(el("div", "ddpm-failure", failed.message)); }
        });
        view.hidden = mine.hidden = check.hidden = true;
        box.append(page.row(view), el("div", "ddpm-controls", mine, check, again), says);
        return box;
    }
})();
