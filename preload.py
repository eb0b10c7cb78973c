"""Our command line arguments, added before the WebUI reads its own."""


def preload(parser):
    parser.add_argument(
        "--ddpm-workspace",
        default="",
        metavar="FOLDER",
        help="where the DDPM tab keeps datasets and runs while its setting is empty, instead of ddpm in the data folder",
    )
    parser.add_argument(
        "--ddpm-allow-folder",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder of images that may be typed in the DDPM tab although the WebUI is reachable from other machines",
    )
