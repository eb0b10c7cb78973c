// Generate sub-tab: the picture as it emerges, the results, and whether the model learned or copied.
(function () {
    "use strict";

    const { T, draw, byId, el, figure, url, number, redraw, progress, jobKey } = window.ddpm;
    let shownSample = null;

    draw.sample = function (node, status) {
        const job = status.jobs.sample;
        redraw(node, jobKey(job), () => {
            if (!job) return [];
            const box = progress(job);
            if (job.state === "running" && job.progress.done) {
                const image = el("img", "ddpm-emerging");
                image.alt = "emerging"; image.src = url("emerging", { job: job.id, n: job.progress.done });
                box.append(image);
            }
            return box;
        });
        const ended = job && job.result && job.result.count;
        const show = byId("ddpm_show_results");
        if (ended && show && shownSample !== job.id) {
            shownSample = job.id;
            show.click();
        }
    };

    draw.animation = function (node, status) {
        const job = status.jobs.sample;
        const ready = job && job.result && job.result.count;
        redraw(node, ready ? job.id : null, () => {
            if (!ready) return [];
            const image = el("img", "ddpm-animation");
            image.alt = "denoising"; image.loading = "lazy"; image.src = url("animation", { job: job.id });
            const box = el("details", "ddpm-details", el("summary", "", T("Denoising")), image,
                el("div", "ddpm-note", T("The network's estimate of the image at each step: first the mean of everything it has seen, then the layout, then the detail.")));
            return box;
        });
    };

    draw.evaluate = function (node, status) {
        const job = status.jobs.evaluate;
        redraw(node, jobKey(job), () => {
            if (!job) return [];
            const box = progress(job);
            const r = job.result;
            if (r) {
                const copied = Math.round(1000 * r.memorised) / 10;
                box.append(el("div", "ddpm-line", figure(T("KID"), number(r.kid)), figure(T("95 % interval"), number(r.kid_low) + " – " + number(r.kid_high)),
                    figure(T("real vs. real"), number(r.floor)), figure(T("memorised"), copied + " %")));
                box.append(el("div", "ddpm-line", el("span", "", T("Compared with dataset")), el("strong", "", r.dataset)));
                const memorised = r.memorised > 0.05 ? T("It memorised some of its training images.")
                    : r.own_images || r.learned_from === r.dataset ? T("It did not memorise its training images.") : T("Nothing here is memorised, but these are not the images it was trained on.");
                if (r.learned_from && r.learned_from !== r.dataset) box.append(el("div", "ddpm-failure", el("span", "", T("This model was trained on another dataset:")), " ", el("strong", "", r.learned_from)));
                if (r.learned_from === r.dataset && !r.own_images) box.append(el("div", "ddpm-note", T("The dataset has changed since this model was trained.")));
                box.append(el("div", "ddpm-line", el("strong", "", memorised),
                    el("strong", "", r.kid < 0.15 ? T("Its images come close to the dataset.") : r.kid < 1 ? T("Its images are recognisable, but not yet close to the dataset.")
                        : T("Its images are far from the dataset: keep training.")), el("span", "", r.count, " ", el("span", "", T("images compared")))));
                box.append(el("div", "ddpm-note", T("KID measures the distance to the dataset (on random convolution features): the closer to real vs. real, the better. An image counts as memorised if it is at least three times closer to one training image than to any other. Below: generated images above their nearest training images, the closest first.")));
                const image = el("img", "ddpm-neighbours");
                image.alt = "neighbours"; image.src = url("neighbours", { job: job.id });
                box.append(image);
            }
            return box;
        });
    };
})();
