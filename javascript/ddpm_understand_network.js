// Page 7: the network, part for part, and an image's way through it.
(function () {
    "use strict";

    const { T, el, button, number, figure: count } = window.ddpm;
    const KINDS = { "residual block": T("residual block"), "ConvNeXt block": T("ConvNeXt block"), attention: T("attention"), "linear attention": T("linear attention"), downsampling: T("downsampling"), upsampling: T("upsampling"), convolution: T("convolution") };
    const MARKS = { "residual block": "R", "ConvNeXt block": "R", attention: "A", "linear attention": "A", downsampling: "↓", upsampling: "↑", convolution: "C" };

    function large(value) {
        return value >= 1e9 ? number(value / 1e9) + " G" : value >= 1e6 ? number(value / 1e6) + " M" : value >= 1e3 ? number(value / 1e3) + " k" : String(value);
    }

    window.ddpm.understand.add({
        key: "network", number: 7, title: T("The network"), build(page) {
            const chosen = page.lesson();
            const totals = el("div", "ddpm-line"), plan = el("div", "ddpm-plan"), maps = page.figure(T("the four channels that vary most in this part"), "ddpm-wide", 3), about = el("div", "ddpm-line");
            const entry = page.figure(T("noised image, in")), out = page.figure(T("the network's answer, out"));
            const by = page.picker("shade", T("Shaded by"), [["milliseconds", T("time")], ["multiply_adds", T("multiply-adds")], ["weights", T("weights")]], "milliseconds");
            let found = null;
            function detail() {
                const parts = found.parts, part = parts.find((one) => one.name === page.state.part) || parts[0];
                for (const chip of plan.querySelectorAll("button")) chip.setAttribute("aria-pressed", String(chip.dataset.part === part.name));
                maps.show(part.maps);
                about.replaceChildren(el("strong", "", KINDS[part.kind]), el("code", "", part.name), count(T("channels"), part.channels), count(T("pixels"), part.size[1] + "×" + part.size[0]),
                    count(T("weights"), large(part.weights)), count(T("multiply-adds"), large(part.multiply_adds)), count("ms", number(part.milliseconds)));
            }
            function draw() {
                const key = page.value("shade", "milliseconds"), most = Math.max(...found.parts.map((part) => part[key]), 1e-9);
                const rows = Array.from({ length: found.levels }, () => ({ down: [], up: [] })), mid = [];
                for (const part of found.parts) {
                    const down = /^down_blocks\.(\d+)/.exec(part.name), up = /^up_blocks\.(\d+)/.exec(part.name);
                    if (down) rows[Number(down[1])].down.push(part);
                    else if (up) rows[found.levels - 1 - Number(up[1])].up.push(part);
                    else if (part.name === "conv_in") rows[0].down.unshift(part);
                    else if (part.name === "conv_out") rows[0].up.push(part);
                    else mid.push(part);
                }
                const chip = (part) => {
                    const node = button(MARKS[part.kind], () => { page.state.part = part.name; detail(); }, KINDS[part.kind] + " " + part.name);
                    node.dataset.part = part.name;
                    node.setAttribute("aria-label", KINDS[part.kind] + " " + part.name);
                    node.style.setProperty("--share", Math.round(100 * part[key] / most) + "%");
                    return node;
                };
                const side = (parts) => el("div", "ddpm-parts", ...parts.map(chip));
                plan.replaceChildren(...rows.flatMap((one, level) => {
                    const first = (one.down[one.down.length - 1] || one.up[0]), size = one.up[0] || first;
                    return [el("div", "ddpm-level", el("span", "ddpm-dim", size.size[1] + "×" + size.size[0] + ", " + size.channels), side(one.down),
                        el("span", "ddpm-skip", level < found.levels ? T("skip") + " →" : ""), side(one.up))];
                }), el("div", "ddpm-level", el("span", "ddpm-dim", T("middle")), el("span", ""), side(mid), el("span", "")));
                detail();
            }
            page.body.append(
                page.lead(T("The network is a U. On the left the image shrinks and gains channels. At the bottom it is smallest, and attention lets every pixel look at every other. On the right it grows again. Skips carry the detail of each level across; without them the way back would be guesswork.")),
                el("div", "ddpm-controls", ...chosen.sliders, page.fresh("seed", T("New noise")), by), totals, plan,
                el("div", "ddpm-note", T("C: convolution. R: residual block, which is also told the timestep. A: attention. ↓ halves the size, ↑ doubles it. Stronger colour means more. Press a part to look inside.")),
                about, page.row(maps), page.row(entry, out),
                page.formula("h + conv(SiLU(norm(conv(SiLU(norm(h))) + time)))", T("a residual block: Ho et al. 2020, appendix B; in the code: ResBlock in model/blocks.py, the U: UNet in model/unet.py")));
            page.ask("network", ["image", "t", "seed"], (answer) => {
                found = answer;
                chosen.follow(answer);
                entry.show(answer.x);
                out.show(answer.answer);
                totals.replaceChildren(count(T("weights"), large(answer.weights)), count(T("multiply-adds for one answer"), large(answer.multiply_adds)), count(T("parts"), answer.parts.length));
                draw();
            });
            page.watch((key) => { if (key === "shade" && found) draw(); });
        },
    });
})();
