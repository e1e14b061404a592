"""The API's endpoints on the studio's data; tokens, limits and faults are in `gateway.py`."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web

from cfproxy.sandbox.assets import Assets
from cfproxy.sandbox.problem import ApiProblem, check_id, find, invalid, paginate, read_json
from cfproxy.sandbox.studio import Record, Studio

Handler = Callable[..., Awaitable[web.StreamResponse]]
_JOB_TEXTS = ("name", "status", "deadline")


class Route(NamedTuple):
    """A path below `/v1`, as a pattern for the whole raw path; its groups are the handler's arguments."""

    method: str | None
    pattern: re.Pattern[str]
    handler: Handler


class Api:
    """The API's handlers."""

    def __init__(self, studio: Studio, assets: Assets) -> None:
        self._studio = studio
        self._assets = assets

    def routes(self) -> list[Route]:
        """Return the routes."""
        studio = self._studio
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/jobs", _lister(studio.jobs, "clientId")),
            ("GET", "/jobs/([^/]+)", _getter(studio.jobs)),
            ("PUT", "/jobs/([^/]+)", self._put_job),
            ("GET", "/jobs/([^/]+)/get-job-status-overview", self._summarise_job),
            ("GET", "/products", _lister(studio.products, "jobId")),
            ("GET", "/products/([^/]+)", _getter(studio.products)),
            ("GET", "/workunits/([^/]+)", _getter(studio.work_units)),
            ("GET", "/productiontypes", self._list_production_types),
            ("GET", "/outfits", self._list_outfits),
            ("POST", "/assets/get-presigned-url", self._presign),
        ]
        return [Route(method, re.compile(path), handler) for method, path, handler in table]

    async def _list_outfits(self, request: web.Request) -> web.Response:
        filter_id = request.query.get("productId")
        outfits = list(self._studio.outfits.values())
        if filter_id is not None:
            product_id = check_id("productId", filter_id)
            outfits = [outfit for outfit in outfits if product_id in outfit["productIds"]]
        return paginate(outfits, request.query)

    async def _list_production_types(self, _request: web.Request) -> web.Response:
        return web.json_response(self._studio.production_types)

    async def _summarise_job(self, _request: web.Request, job_id: str) -> web.Response:
        return web.json_response(self._studio.summarise_job(find(self._studio.jobs, job_id)["id"]))

    async def _put_job(self, request: web.Request, job_id: str) -> web.Response:
        """Change the fields that were sent; read-only fields are ignored."""
        job = find(self._studio.jobs, job_id)
        body = await read_json(request)
        changes = {name: body[name] for name in _JOB_TEXTS if name in body}
        wrong = {name: [f"The {name} field is required."] for name in changes if not _is_text(changes[name])}
        if wrong:
            raise ApiProblem(400, "One or more validation errors occurred.", wrong)
        job.update(changes)
        return web.json_response(job)

    async def _presign(self, request: web.Request) -> web.Response:
        body = await read_json(request)
        file_name, product_id = body.get("fileName"), body.get("productId")
        if not _is_text(file_name):
            raise invalid("fileName", "The fileName field is required.")
        if product_id is not None:
            product_id = find(self._studio.products, str(product_id))["id"]
        return web.json_response(self._assets.presign(str(file_name), product_id))


def _getter(table: dict[str, Record]) -> Handler:
    async def get(_request: web.Request, record_id: str) -> web.Response:
        return web.json_response(find(table, record_id))

    return get


def _lister(table: dict[str, Record], filter_field: str) -> Handler:
    async def list_records(request: web.Request) -> web.Response:
        filter_id, records = request.query.get(filter_field), list(table.values())
        if filter_id is not None:
            filter_id = check_id(filter_field, filter_id)
            records = [record for record in records if record[filter_field] == filter_id]
        return paginate(records, request.query)

    return list_records


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
