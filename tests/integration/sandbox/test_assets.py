"""Uploads go to the object store beside the API, without its token."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from tests.integration.sandbox.world import World


async def presign(world: World, **body: object) -> Any:
    async with world.call("POST", "/v1/assets/get-presigned-url", json=body) as response:
        return response.status, await response.json()


async def test_a_file_is_uploaded_to_the_object_store_without_a_token(world: World) -> None:
    """The API returns a URL; a PUT there needs no token, and the asset is known afterwards."""
    product = (await world.get("/v1/products?pageSize=1"))["pageData"][0]
    status, slot = await presign(world, fileName="a.jpg", productId=product["id"])
    assert (status, slot["method"]) == (200, "PUT")
    assert slot["url"].startswith(f"{world.sandbox.url}/_objects/")
    assert [asset["uploaded"] for asset in world.sandbox.studio.assets.values()] == [False]
    async with world.client.put(slot["url"], data=b"picture") as response:
        assert response.status == 200
        assert response.headers["ETag"] == f'"{hashlib.sha256(b"picture").hexdigest()[:32]}"'
    assert (await world.get(f"/v1/products/{product['id']}"))["assetIds"] == [slot["assetId"]]
    uploaded = {"id": slot["assetId"], "fileName": "a.jpg", "productId": product["id"], "uploaded": True}
    sums = {"sizeBytes": 7, "sha256": hashlib.sha256(b"picture").hexdigest()}
    assert list(world.sandbox.studio.assets.values()) == [uploaded | sums]


async def test_the_object_store_refuses_a_token(world: World) -> None:
    """An upload with the API's token gets 400, as from a real object store."""
    _, slot = await presign(world, fileName="a.jpg")
    async with world.client.put(slot["url"], data=b"picture", headers=world.bearer()) as response:
        assert response.status == 400
        assert "Only one auth mechanism allowed" in await response.text()


async def test_a_presigned_url_is_valid_unchanged_for_an_hour(world: World) -> None:
    """Another signature, another key or a late upload gets 403."""
    _, slot = await presign(world, fileName="a.jpg")
    address, _, signature = slot["url"].partition("?")
    for wrong in (address, f"{address}?signature=0", f"{world.sandbox.url}/_objects/unknown?{signature}"):
        async with world.client.put(wrong, data=b"picture") as response:
            assert response.status == 403
    world.clock.now += 3600.0
    async with world.client.put(slot["url"], data=b"picture") as response:
        assert (response.status, "Request has expired" in await response.text()) == (403, True)


async def test_an_upload_needs_a_name_and_an_existing_product(world: World) -> None:
    """A missing file name gets 400, an unknown product 404."""
    status, problem = await presign(world, fileName=" ")
    assert (status, list(problem["errors"])) == (400, ["fileName"])
    assert (await presign(world, fileName="a.jpg", productId=str(uuid.UUID(int=0))))[0] == 404
