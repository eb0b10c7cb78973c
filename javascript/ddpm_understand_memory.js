// Page 5: learned or memorised? The network beside the perfect memoriser of its images.
(function () {
    "use strict";

    const { T, el, button, number, figure: count } = window.ddpm;
    const VERDICTS = {
        learned: T("When it samples, this network does not follow the memoriser, and at little and medium noise it is closer to images that it has never seen: it has learned what such images have in common."),
        partly: T("This network lies between: it has begun to answer with its training images."),
        copies: T("This network answers like the memoriser: it copies its training images."),
        untrained: T("This network goes its own way, but at medium noise it is not yet closer to unseen images than the memoriser: keep training."),
        open: T("The memoriser settles on one image at none of these timesteps, so this page cannot tell."),
    };
    const KINDS = [["real", T("real")], ["sample", T("sample")], ["copy", T("copy")]];

    window.ddpm.understand.add({
        key: "memory", number: 5, title: T("Learned or memorised"), build(page) {
            const chosen = page.lesson();
            const clean = page.figure(T("image x₀")), mixed = page.figure(T("noised image")), ours = page.figure(T("the network's answer")), theirs = page.figure(T("the memoriser's answer")),
                apart = page.figure(T("where they differ")), near = page.figure(T("the memoriser's likeliest image"));
            const which = el("div", "ddpm-note"), numbers = el("div", "ddpm-line"), verdict = el("div", "ddpm-line"), more = el("div", "ddpm-note");
            const curves = page.chart(T("Mean squared error of the image, on images that neither has seen"), T("timestep"), true);
            const way = page.figure(T("Top: the network's guess at each step. Bottom: the training image nearest to it"), "ddpm-wide", 2), leans = el("div", "ddpm-views"), leaning = el("div", "ddpm-note", T("The training images that the memoriser gives most weight along the way:")), copied = el("div", "ddpm-note");
            const origin = page.onDemand("memory/origin", ["seed"], (found) => {
                way.show(found.picture);
                leans.replaceChildren(...found.leans_on.map((source, i) => {
                    const one = page.figure(percent(found.shares[i]), "ddpm-small");
                    one.show(source);
                    return one;
                }));
                copied.textContent = found.copied ? T("This sample is a copy: it is at least three times nearer to one training image than to any other.") : T("This sample is not a copy: no training image is much nearer to it than the others are.");
                way.hidden = leaning.hidden = false;
            });
            way.hidden = leaning.hidden = true;
            page.body.append(
                page.lead(T("The perfect memoriser needs no network. It compares the noised image with every training image and answers with their average, in which the likeliest ones count most. No network can do better on the training images. But it can only ever answer with them and with mixtures of them. Here it stands beside your network.")),
                el("div", "ddpm-controls", ...chosen.sliders, page.fresh("seed", T("New noise"))),
                page.row(clean, mixed, ours, theirs, apart, near), numbers, which, curves, verdict, more,
                page.formula("D*(x, t) = Σ w_i x_i,   w_i ∝ exp(−|x − √ᾱ_t x_i|² / 2(1 − ᾱ_t))", T("The answer D* is the sum of all training images xᵢ times their weights wᵢ; the nearer an image is to the noised one, the larger its weight. Karras et al. 2022, appendix B.3; in the code: Memoriser in sampling/memoriser.py")),
                page.aside(T("Take a held-out image and move the timestep down. With less noise the memoriser settles on one of its images, which is the wrong one here, and stays wrong, however little noise is left. A network that has learned does not follow it and finds the image that it has never seen: this is generalisation. (On training images both are right, so there the map is black for any good network.) A network copies when it is trained too long on too few images. Then it answers as the memoriser does on held-out images, too, and its samples equal training images.")),
                el("h4", "", T("Where does a sample come from?")), el("div", "ddpm-toolbar", button(T("Sample and look"), () => { page.state.seed = String(Math.floor(Math.random() * 1e9)); origin.now(); })), page.row(way), leaning, leans, copied,
                el("h4", "", T("Real, sample or copy?")), quiz(page));
            page.ask("memory", ["image", "t", "seed"], (found) => {
                chosen.follow(found);
                clean.show(found.x0);
                mixed.show(found.x);
                ours.show(found.network);
                ours.say(T("error") + " " + number(found.network_error));
                theirs.show(found.memoriser);
                theirs.say(T("error") + " " + number(found.memoriser_error));
                apart.show(found.difference);
                near.show(found.nearest);
                near.say(percent(found.weight));
                numbers.replaceChildren(el("span", "", T("The memoriser mixes mainly about"), " ", el("strong", "", number(found.effective)), " ", T("of"), " ", el("strong", "", found.memorised), " ", T("images.")),
                    found.memorised < found.learned_from ? el("span", "", T("(It only has room for these. The model learned from more:)"), " ", found.learned_from) : "");
                which.textContent = page.about(found);
                curves.mark(found.t);
            });
            page.ask("memory/levels", [], (found) => {
                const points = (values) => found.times.map((x, i) => [x, values[i]]);
                curves.show([{ label: T("the network's error"), points: points(found.network_error) }, { label: T("the memoriser's error"), points: points(found.memoriser_error) },
                    { label: T("difference between their answers"), points: points(found.apart), chosen: false }], [found.times[0], found.times[found.times.length - 1]]);
                verdict.replaceChildren(el("strong", "", VERDICTS[found.verdict]));
                more.textContent = (found.mirrored ? T("This dataset is too small to hold images out, so mirrored ones are used.") : "") + (found.own ? "" : " " + T("These are not the images that this model learned from."));
            });
        },
    });

    function percent(share) {
        return (share >= 0.1 ? Math.round(100 * share) : number(100 * share)) + " %";
    }

    /** Nine cards to be sorted by the reader. */
    function quiz(page) {
        const cards = el("div", "ddpm-views"), says = el("div", "ddpm-line");
        says.setAttribute("role", "status");
        const ask = page.onDemand("memory/quiz", ["seed"], (found) => {
            const left = new Set(found.kinds.keys());
            let right = 0;
            says.replaceChildren(el("span", "", T("Real: an image of the dataset that the model was not trained on. Sample: made by the model. Copy: a training image. Below each card is the training image nearest to it; a copy equals it.")));
            cards.replaceChildren(...found.cards.map((source, i) => {
                const view = page.figure(T("Card") + " " + (i + 1)), below = page.figure(T("nearest"));
                view.show(source);
                below.show(found.nearest[i]);
                const choices = el("div", "ddpm-toolbar", ...KINDS.map(([kind, label]) => button(label, () => {
                    if (!left.delete(i)) return;
                    const good = kind === found.kinds[i];
                    right += good;
                    const truth = KINDS.find(([one]) => one === found.kinds[i])[1];
                    choices.replaceChildren(el("strong", good ? "ddpm-right" : "ddpm-wrong", (good ? "✓ " : "✗ ") + T("it was:") + " " + truth));
                    if (!left.size) says.replaceChildren(el("span", "", T("Right:")), el("strong", "", right + " / " + found.kinds.length),
                        el("span", "", right >= 7 ? T("You can tell them apart.") : T("A good sample passes for real. So does a copy; only the original beside it gives it away.")));
                })));
                return el("div", "ddpm-card", view, below, choices);
            }));
        });
        return el("div", "", el("div", "ddpm-toolbar", button(T("Deal nine cards"), () => { page.state.seed = String(Math.floor(Math.random() * 1e9)); ask.now(); })), says, cards);
    }
})();
