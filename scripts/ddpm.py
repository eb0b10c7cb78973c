"""What the WebUI loads: registers what the package offers. A failure becomes a tab that shows it."""

from modules import script_callbacks

try:
    # the host puts this extension's folder on sys.path only while this file runs
    from ddpm_core.host.webui import register
    from ddpm_core.host.webui.pages.script import DDPMAloneScript, DDPMScript  # noqa: F401 - the host looks for them here
    from ddpm_core.host.webui.pages.upscalers import UpscalerDDPM  # noqa: F401 - the host finds it by its base class

    register.register()
except Exception as error:
    import html
    import traceback

    traceback.print_exc()
    _said = html.escape(f"{type(error).__name__}: {error}")

    def _failed():
        import gradio as gr

        with gr.Blocks(analytics_enabled=False) as page:
            gr.HTML(
                "<p>The DDPM extension could not be loaded.</p>"
                f"<p>{_said}</p><p>Update the WebUI and the extension, and restart; the console has more.</p>"
            )
        return [(page, "DDPM", "ddpm")]

    script_callbacks.on_ui_tabs(_failed)
