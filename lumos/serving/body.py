"""Reading what a client sends: a JSON object or a form, at most one file in it, each field once. Raises ask.Refused."""

from __future__ import annotations

from typing import BinaryIO

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from lumos.serving import ask
from lumos.serving.ask import Refused, VideoRequest


async def read_request(request: Request) -> tuple[VideoRequest, BinaryIO | None]:
    """The checked fields of a body, and the file in it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        values, file = await read_form(request, "input_reference")
        return ask.from_form(values), file
    if kind not in ("application/json", ""):
        raise Refused(400, "the body must be application/json or multipart/form-data; see /docs")
    return ask.from_json(await request.body()), None


async def read_form(request: Request, file_field: str) -> tuple[dict[str, str], BinaryIO | None]:
    """The fields of a form, and the file in the field that may be one."""
    try:
        form = await request.form(max_files=1, max_fields=32, max_part_size=2**18)
    except HTTPException as error:
        if isinstance(error.__context__, Refused):  # not about the form, but about how it came
            raise error.__context__ from None
        raise Refused(400, f"the form cannot be read: {error.detail}") from None
    values: dict[str, str] = {}
    file: BinaryIO | None = None
    for name, value in form.multi_items():
        if name in values or (file is not None and name == file_field):
            raise Refused(400, f"{name[:40]} is given twice; send it once", name[:40])
        if isinstance(value, UploadFile):
            if name != file_field:
                raise Refused(400, f"{name[:40]} must not be a file; only {file_field} may", name[:40])
            file = value.file
        else:
            values[name] = value
    return values, file
