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
            const box = el("details", "ddpm-details", el("summary", "", T("From noise to picture")), image,
                el("div", "ddpm-note", T("What the network takes the picture for, call by call: first the mean of all it has seen, then layout, then detail.")));
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
                    figure(T("real against real"), number(r.floor)), figure(T("copied"), copied + " %")));
                box.append(el("div", "ddpm-line", el("strong", "", r.memorised > 0.05 ? T("It copies some of its pictures.") : T("It does not copy.")),
                    el("strong", "", r.kid < 0.15 ? T("Its pictures come close to the real ones.") : r.kid < 1 ? T("Its pictures are recognisable, and still apart from the real ones.")
                        : T("Its pictures are far from the real ones: train on.")), el("span", "", r.count, " ", el("span", "", T("pictures compared")))));
                box.append(el("div", "ddpm-note", T("KID is the distance from the real pictures, on features of random convolutions; the nearer to real against real, the better. Copied are pictures at least three times nearer to one training picture than to any other. Below: generated pictures above their nearest training pictures, the most copied first.")));
                const image = el("img", "ddpm-neighbours");
                image.alt = "neighbours"; image.src = url("neighbours", { job: job.id });
                box.append(image);
            }
            return box;
        });
    };
})();
