// Page 8: what the well-known models add to this, and which part of this extension does it.
(function () {
    "use strict";

    const { T, el, button, root, byId } = window.ddpm;

    const CHAPTERS = [
        { name: "Stable Diffusion", adds: T("It adds words. A text encoder reads the prompt, and the network gets its answer at every step: added to the timestep, or read by attention. Stable Diffusion also works on compressed images (latents) to save time; here the network sees pixels, since its images are small."),
            flow: [T("prompt"), T("text encoder"), T("network, at every step"), T("image")], here: T("Train with Condition tags or text, then write a prompt in Generate. Page 6 shows what the words do."), page: "words", tab: "generate", show: "chapters/words" },
        { name: "DALL-E 2", adds: T("It splits the work. A prior turns the prompt into an image embedding: a point in a space that images and texts share. A decoder turns the embedding into an image."),
            flow: [T("prompt"), T("prior"), T("embedding"), T("decoder"), T("image")], here: T("Train with the preset contrast, then a model with Prompts: image: Variations in Generate make others like an image, and prompts go through the prior."), tab: "train", have: (status) => Object.keys(status.encoders || {}).length > 0 },
        { name: "Imagen", adds: T("It adds a cascade. The first model makes a small image; a second diffusion model, trained only to enlarge, draws the detail."),
            flow: [T("prompt"), T("small image"), T("upscaler"), T("large image")], here: T("Train with the preset upscale-4x-small, then choose it as Upscaler in Generate."), tab: "train", show: "chapters/cascade", have: (status) => status.upscalers.length > 0 },
        { name: "DreamBooth", adds: T("It teaches a model a new word from a few images. So that the model forgets nothing, it also keeps seeing images of its own (prior preservation)."),
            flow: [T("a few images"), T("a new word"), T("model, fine-tuned")], here: T("Choose Fine-tune a model in Train, and give a new word."), tab: "train", show: "chapters/adapter", have: (status) => status.adapters.length > 0 },
        { name: "LoRA", adds: T("It leaves the model as it is. Beside each weight matrix it trains two thin ones whose product is added. The file is a tenth of the size, and you set its weight when you generate."),
            flow: ["W", "+", T("weight") + " · (B · A)"], here: T("Fine-tune a model in Train makes one; <ddpm:name:0.8> in a prompt uses it."), tab: "train", show: "chapters/adapter", have: (status) => status.adapters.length > 0 },
    ];

    function go(tab) {
        const names = ["dataset", "train", "generate", "understand"], buttons = root().querySelectorAll("#ddpm_tabs > .tab-nav button, #ddpm_tabs [role=tab]");
        const there = buttons[names.indexOf(tab)];
        if (there) there.click();
        const top = byId("ddpm_tab");
        if (top) top.scrollIntoView({ block: "start" });
    }

    const LABELS = { generate: T("Open Generate"), train: T("Open Train") };

    window.ddpm.understand.add({
        key: "chapters", number: 8, title: T("The chapters"), build(page) {
            const status = page.status();
            /** What the person's own model makes of a chapter, at the press of a button. */
            function shown(one) {
                const place = el("div", "ddpm-views");
                const ask = page.onDemand(one.show, ["seed"], (found) => {
                    place.replaceChildren(...found.images.map((each) => {
                        const view = page.figure(each.label || T("without words"));
                        view.show(each.image);
                        return view;
                    }));
                });
                return { place, press: button(T("Show with my model"), () => ask.now()) };
            }
            page.body.append(page.lead(T("Pages 1 to 7 show the core of every diffusion model. Each of the well-known ones adds a chapter to it.")),
                ...CHAPTERS.map((one) => [one, one.show ? shown(one) : null]).map(([one, own]) => el("article", "ddpm-chapter", el("h4", "", one.name), el("p", "", one.adds),
                    el("div", "ddpm-flow", ...one.flow.flatMap((part, i) => [i && !one.flow.includes("+") ? el("span", "ddpm-dim", "→") : null, el("span", "ddpm-flowpart", part)])),
                    el("p", "", el("strong", "", T("Here:")), " ", one.here, one.have && status ? " " + (one.have(status) ? T("You have one.") : T("You have none yet.")) : ""),
                    el("div", "ddpm-toolbar", one.tab ? button(LABELS[one.tab], () => go(one.tab)) : null, one.page ? button(T("Open page 6"), () => window.ddpm.understand.open(one.page)) : null, own && own.press), own && own.place)));
        },
    });
})();
