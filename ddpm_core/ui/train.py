"""Train sub-tab: preset, a few plain settings, the rest folded away; estimate, start, watch, stop, resume."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..errors import UserError
from ..options import fields_of
from ..requests import TrainRequest
from ..service import Service
from ..training.settings import ADAPTER_STEPS, PRESETS, RunConfig, default_preset
from . import ids
from .common import decimal, failure, in_rows, live, not_in_defaults, note, said, value_of, whole, widget

TITLE = "Train"
_FINE_TUNE = (
    "With some images of something new: an adapter teaches it to a model, which forgets nothing. Prompts call it by "
    "&lt;ddpm:name:1&gt; and the new word."
)


def build(service: Service) -> dict[str, Any]:
    """Build the Train page; returns the widgets that other pages fill."""
    preset_name = default_preset(service.host.device().type).name
    with gr.Row():
        with gr.Column(scale=2):
            with gr.Row():
                dataset = gr.Dropdown(
                    label="Dataset", choices=[], value=None, allow_custom_value=True, elem_id=ids.TRAIN_DATASET
                )
                model = gr.Dropdown(
                    label="Model name",
                    choices=[],
                    value=None,
                    allow_custom_value=True,
                    elem_id=ids.TRAIN_MODEL,
                    info="A new name, or an existing model to resume",
                )
            with gr.Row():
                preset = gr.Dropdown(
                    label="Preset",
                    choices=list(PRESETS),
                    value=preset_name,
                    elem_id=ids.TRAIN_PRESET,
                    info=PRESETS[preset_name].summary,
                )
                steps = gr.Number(
                    label="Steps",
                    value=PRESETS[preset_name].steps,
                    precision=0,
                    elem_id=ids.TRAIN_STEPS,
                    info="Total, including steps already trained",
                )
                minutes = gr.Number(label="Time limit in minutes (0 = none)", value=0, elem_id=ids.TRAIN_MINUTES)
            with gr.Accordion("More settings", open=False):
                shown = [field for field in fields_of(TrainRequest).values() if field.option.label]
                more = [field for field in shown if not field.option.group]
                widgets = []
                for start_of_row in range(0, len(more), 3):
                    with gr.Row():
                        widgets += [widget(field) for field in more[start_of_row : start_of_row + 3]]
                with gr.Row():
                    init_from = gr.Dropdown(label="Initial weights", choices=[""], value="", allow_custom_value=True)
                    other = gr.Textbox(label="Other settings", placeholder="flip_probability=0.5, dropout=0.1", lines=1)
            with gr.Accordion("Fine-tune a model", open=False, elem_id="ddpm_fine_tune"):
                gr.HTML(f'<div class="ddpm-note">{_FINE_TUNE}</div>')
                base = gr.Dropdown(
                    label="Model to fine-tune",
                    choices=[""],
                    value="",
                    allow_custom_value=True,
                    elem_id="ddpm_base",
                    info="It stays as it is; what is trained is an adapter, by the model name above",
                )
                adapting = [field for field in shown if field.option.group == "adapter"]
                adapter_widgets = in_rows(adapting)
        with gr.Column(scale=1, min_width=260):
            with gr.Row():
                start = gr.Button("Train", variant="primary", elem_id=ids.TRAIN_START)
                stop = gr.Button("Stop and save", elem_id=ids.TRAIN_STOP)
            with gr.Row():
                resume = gr.Button("Resume training", elem_id=ids.TRAIN_RESUME)
                estimate = gr.Button("Estimate", elem_id=ids.TRAIN_ESTIMATE)
            message = gr.HTML("", elem_id=ids.MESSAGE_TRAIN)
    live("unfinished")
    live("train")
    # which preset is right depends on the device, and its steps on the preset
    not_in_defaults(dataset, model, preset, steps, init_from, base)

    fields = [dataset, model, preset, steps, minutes, init_from, other, base, *widgets, *adapter_widgets]

    def request(values: tuple[Any, ...], resuming: bool) -> TrainRequest:
        data, name, chosen, total, most, init, extra, tuned, *others = values
        limit = decimal(most, "Minutes") or None
        if resuming:
            _check_dataset(service, str(name or ""), data)
            steps_ = whole(total, "Steps") or None
            stop_early = bool(others[[field.name for field in more].index("stop_before_copying")])
            return TrainRequest(
                model=str(name or ""), steps=steps_, minutes=limit, resume=True, stop_before_copying=stop_early
            )
        if not data:
            raise UserError("Choose a dataset first: harvest one in the Dataset tab.")
        tuning = dict(zip((field.name for field in adapting), others[len(more) :]))
        if not tuned:
            if str(tuning.get("concept") or "").strip():
                raise UserError("Choose the model to fine-tune, or leave the new word empty.")
            tuning = {}
        return TrainRequest(
            model=str(name or ""),
            dataset=str(data),
            preset=None if tuned else str(chosen),
            base=str(tuned) if tuned else None,
            **{field.name: value_of(field, tuning[field.name]) for field in adapting if tuning},
            steps=whole(total, "Steps") or None,
            minutes=limit,
            init_from=str(init) if init else None,
            settings=_pairs(str(extra or "")),
            **{field.name: value_of(field, value) for field, value in zip(more, others)},
        )

    def begin(*values: Any) -> str:
        service.start_training(request(values, False))
        return ""

    def go_on(*values: Any) -> str:
        service.start_training(request(values, True))
        return ""

    def end() -> str:
        return "" if service.stop("train") else "Nothing is being trained."

    def guess(*values: Any) -> str:
        found = service.estimate(request(values, False))
        lines = [
            f"About {_duration(found['minutes'])} on {service.host.device()} for {found['steps']:,} steps, "
            f"about {found['megabytes'] / 1024:.1f} GB of memory; {found['parameters'] / 1e6:.1f} million parameters, "
            f"{found['images']} images.",
            *found["warnings"],
        ]
        return " ".join(lines)

    def of_run(name: Any) -> Any:
        """The dataset and the settings of a run that is there already: Resume goes on with these."""
        name = str(name or "")
        if name not in service.workspace.run_names():
            return gr.update(), gr.update(), ""
        try:
            run = service.workspace.run(name)
            config = RunConfig.from_json(run.config)
        except UserError as error:
            return gr.update(), gr.update(), failure(str(error))
        there = run.dataset in service.workspace.dataset_names()
        reached = service.workspace.steps_reached(name)
        return (
            gr.update(value=run.dataset) if there else gr.update(),
            gr.update(value=run.steps) if run.steps < 10**9 else gr.update(),
            note(_settings_of(name, reached, config, run.dataset)) if reached else "",  # else it has only just begun
        )

    def chosen_preset(name: Any) -> Any:
        found = PRESETS.get(str(name))
        return (gr.update(info=found.summary), gr.update(value=found.steps)) if found else (gr.update(), gr.update())

    def chosen_base(name: Any, of_preset: Any) -> Any:
        """Of how many steps a training usually has."""
        if name:
            return gr.update(value=ADAPTER_STEPS)
        found = PRESETS.get(str(of_preset))
        return gr.update(value=found.steps) if found else gr.update()

    base.change(chosen_base, inputs=[base, preset], outputs=[steps], show_progress=False)
    model.change(of_run, inputs=[model], outputs=[dataset, steps, message], show_progress=False)
    preset.change(chosen_preset, inputs=[preset], outputs=[preset, steps])
    start.click(said(begin), inputs=fields, outputs=[message])
    resume.click(said(go_on), inputs=fields, outputs=[message])
    stop.click(said(end), inputs=[], outputs=[message])
    estimate.click(said(guess), inputs=fields, outputs=[message])
    return {"dataset": dataset, "init_from": init_from, "base": base, "model": model}


def _settings_of(name: str, reached: int, config: RunConfig, dataset: str) -> str:
    """What Resume goes on with, whatever the fields below say."""
    height, width = config.model.image_size
    train = config.train
    return (
        f"{name} has {reached:,} steps on {dataset}: {width}x{height}, batch size {train.batch_size}, learning rate "
        f"{train.learning_rate:g}, {train.optimizer}, {train.precision}, crop {train.crop}. Resume keeps these settings."
    )


def _check_dataset(service: Service, name: str, chosen: Any) -> None:
    """A run goes on with its own dataset; who has chosen another one would believe that it learns from that."""
    if name not in service.workspace.run_names():
        return
    own = service.workspace.run(name).dataset
    if chosen and str(chosen) != own:
        raise UserError(
            f"{name} was trained on {own}: choose that dataset to resume. To train on {chosen}, give a new name "
            f"and start from the weights of {name} (More settings)."
        )


def _pairs(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    key = ""
    for part in (p.strip() for p in text.replace("\n", ",").split(",")):
        name, equals, value = part.partition("=")
        if equals:
            key = name.strip()
            found[key] = value.strip()
        elif part and key:  # a list's next value: block_out_channels=32,64,128
            found[key] += f",{part}"
        elif part:
            raise UserError(f"Other settings are written KEY=VALUE; got {part!r}.")
    return found


def _duration(minutes: float) -> str:
    if minutes < 1.5:
        return f"{max(1, round(minutes * 60))} seconds"
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
