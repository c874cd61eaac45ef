"""A route is there from the start, and analysed when it is first needed: as FastAPI's own would be, and once."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from wootz.gateway.late_route import LateRoute


def app_of(route_class: type[APIRoute]) -> tuple[FastAPI, list[str]]:
    """Two routes, and the paths of those that were analysed."""
    analysed: list[str] = []

    class Counted(route_class):  # pyright: ignore[reportGeneralTypeIssues]
        def get_route_handler(self):
            analysed.append(self.path)
            return super().get_route_handler()

    router, app = APIRouter(route_class=Counted), FastAPI()

    @router.get("/one/{number}", tags=["numbers"])
    async def one(number: int, times: int = 2) -> int:
        return number * times

    @router.post("/two", status_code=201, name="second")
    async def two(body: dict[str, int]) -> dict[str, int]:
        return body

    app.router.routes.extend(router.routes)
    return app, analysed


def test_it_is_analysed_by_the_first_request_that_it_answers() -> None:
    app, analysed = app_of(LateRoute)
    with TestClient(app) as client:
        assert client.get("/two").status_code == 405
        assert (app.url_path_for("second"), analysed) == ("/two", [])
        assert client.get("/one/3").json() == 6
        assert client.get("/one/x").status_code == 422
        assert analysed == ["/one/{number}"]
        assert client.post("/two", json={"a": 1}).status_code == 201
    assert analysed == ["/one/{number}", "/two"]


def test_it_is_described_as_fastapis_own() -> None:
    (app, analysed), (theirs, _) = app_of(LateRoute), app_of(APIRoute)
    assert app.openapi() == theirs.openapi()
    assert len(analysed) == 2
