"""`lumos inspect`: what is in a folder of shards, in numbers and as a picture."""

from dataclasses import dataclass
from pathlib import Path

from lumos.cli.options import Word, report, within


@dataclass(frozen=True)
class InspectArgs:
    """Say what is in a folder of shards, and draw a contact sheet of clips decoded from their codes.

    lumos inspect shards/
    lumos inspect shards/ --sheet sheet.png --count 24 --tokenizer runs/tokenizer/tokenizer
    """

    shards: Word[str]  # folder of shards, or a fsspec URL of one
    sheet: Path | None = None  # contact sheet to write, .png (default: SHARDS/contact_sheet.png)
    count: int = 12  # clips in the sheet, spread over all shards
    tokenizer: str | None = (
        None  # visual tokenizer: name of weights in the package, or a folder (default: the one that made them)
    )
    force: bool = False  # replace the file named by --sheet
    json: bool = False  # print one JSON document as the last line of stdout


def run_inspect(args: InspectArgs) -> None:
    within(args, {"count": (1, 10_000)})
    from lumos.data.inspect import describe, draw_clips
    from lumos.data.manifest import is_url
    from lumos.data.shards import open_shards
    from lumos.media.sheet import contact_sheet
    from lumos.media.video import check_output

    sheet = args.sheet or (Path("contact_sheet.png") if is_url(args.shards) else Path(args.shards) / "contact_sheet.png")
    index = open_shards(args.shards)
    check_output(sheet, overwrite=args.force or args.sheet is None)
    document = describe(index)
    clips, captions = draw_clips(index, args.count, args.tokenizer)
    contact_sheet(clips, captions, columns=6).save(sheet)
    report({**document, "sheet": str(sheet)}, args.json)
