"""A test's own extension in a real host, doing what well-known ones do to the pictures of a generation."""

from copy import copy

from modules import scripts
from modules.processing import Processed
from PIL import Image


class Neighbour(scripts.Script):
    def title(self):
        return "Neighbour"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def postprocess_image(self, p, pp, *args):
        if "early" in p.prompt and p.batch_index == 0:  # ADetailer: the others' postprocess, with nothing processed
            p.scripts.postprocess(copy(p), Processed(p, [], p.seed, ""))

    def postprocess(self, p, processed, *args):
        if "appended" in p.prompt and processed.images:  # ControlNet: its maps, without a text
            processed.images.extend([Image.new("RGB", (64, 64), (9, 9, 9))] * 2)
