"""A small studio with generated data: clients, jobs, products, work units, outfits, assets.

The same seed gives the same studio, and ids are unique across all types. Field names beyond those in the
API's lists are invented.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

Record = dict[str, Any]

_CLIENTS = ("Northlight Apparel", "Harbour & Pine", "Kestrel Sports", "Maison Ostara")
_PRODUCTION_TYPES = ("On Model", "Flat", "Ghost Mannequin", "Detail", "Still Life", "Video")
_STATUSES = ("To Do", "In Progress", "In Review", "Done")
_THINGS = ("Jacket", "Trousers", "Dress", "Sneaker", "Scarf", "Backpack", "Knit", "Shirt")
_COLOURS = ("Navy", "Sand", "Olive", "Black", "Rust", "Ivory")
_JOBS = 60
_PRODUCTS_A_JOB = 5
_FIRST_DAY = date(2026, 1, 5)


@dataclass
class Studio:
    """The data; each table maps an id to its record, in a stable order."""

    seed: int = 20
    jobs: dict[str, Record] = field(default_factory=dict)
    products: dict[str, Record] = field(default_factory=dict)
    work_units: dict[str, Record] = field(default_factory=dict)
    outfits: dict[str, Record] = field(default_factory=dict)
    assets: dict[str, Record] = field(default_factory=dict)
    production_types: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Restore the generated data."""
        for table in (self.jobs, self.products, self.work_units, self.outfits, self.assets):
            table.clear()
        dice = random.Random(self.seed)  # noqa: S311 - invented data, repeatable on purpose
        self.production_types[:] = [{"id": _new_id(dice), "name": name} for name in _PRODUCTION_TYPES]
        clients = [(_new_id(dice), name) for name in _CLIENTS]
        for number in range(1, _JOBS + 1):
            self._add_job(dice, number, *dice.choice(clients))

    def summarise_job(self, job_id: str) -> Record:
        """Return a job's products counted by status."""
        counts = dict.fromkeys(_STATUSES, 0)
        for product in self.products.values():
            if product["jobId"] == job_id:
                counts[product["status"]] += 1
        return {"jobId": job_id, "totalProducts": sum(counts.values()), "productsByStatus": counts}

    def add_asset(self, file_name: str, product_id: str | None) -> Record:
        """Add an asset that is not uploaded yet."""
        asset: Record = {
            "id": str(uuid.uuid4()),
            "fileName": file_name,
            "productId": product_id,
            "uploaded": False,
        }
        self.assets[asset["id"]] = asset
        if product_id is not None:
            self.products[product_id]["assetIds"].append(asset["id"])
        return asset

    def _add_job(self, dice: random.Random, number: int, client_id: str, client_name: str) -> None:
        created = _FIRST_DAY + timedelta(days=number)
        job: Record = {
            "id": _new_id(dice),
            "code": f"JOB-{number:04}",
            "name": f"{client_name} drop {number}",
            "clientId": client_id,
            "clientName": client_name,
            "status": dice.choice(_STATUSES),
            "createdDate": created.isoformat(),
            "deadline": (created + timedelta(days=dice.randint(5, 30))).isoformat(),
        }
        self.jobs[job["id"]] = job
        products = [self._add_product(dice, job, place) for place in range(1, _PRODUCTS_A_JOB + 1)]
        if number % 2:
            self._add_outfit(dice, f"Look {number}", products[:3])

    def _add_product(self, dice: random.Random, job: Record, place: int) -> Record:
        product: Record = {
            "id": _new_id(dice),
            "jobId": job["id"],
            "code": f"{job['code']}-{place:02}",
            "name": f"{dice.choice(_COLOURS)} {dice.choice(_THINGS)}",
            "status": dice.choice(_STATUSES),
            "workUnitIds": [],
            "assetIds": [],
        }
        self.products[product["id"]] = product
        for kind in dice.sample(self.production_types, 2):
            unit: Record = {
                "id": _new_id(dice),
                "productId": product["id"],
                "productionTypeId": kind["id"],
                "status": dice.choice(_STATUSES),
            }
            self.work_units[unit["id"]] = unit
            product["workUnitIds"].append(unit["id"])
        return product

    def _add_outfit(self, dice: random.Random, name: str, products: list[Record]) -> None:
        outfit: Record = {"id": _new_id(dice), "name": name, "productIds": [each["id"] for each in products]}
        self.outfits[outfit["id"]] = outfit


def _new_id(dice: random.Random) -> str:
    return str(uuid.UUID(int=dice.getrandbits(128), version=4))
