"""An OpenID provider over a socket that does what a test says, also what no honest one would.

It checks PKCE, the redirect address and that a code is redeemed once, as RFC 7636 and RFC 6749 have it; its tokens are
signed with joserfc, and every claim and the header can be bent.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import FastAPI, Request
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from serving import Server
from starlette.responses import JSONResponse, Response


class IdentityProvider(Server):
    def __init__(self) -> None:
        self.keys = [RSAKey.generate_key(2048, parameters={"kid": "one", "use": "sig"})]
        self.claims: dict[str, Any] = {"sub": "u-1", "email": "ann@example.com", "email_verified": True}
        self.header: dict[str, Any] = {}
        self.unsigned = False
        self.secret = b""
        """Signs with HMAC instead."""
        self.signed_by: Any = None
        self.codes: dict[str, dict[str, str]] = {}
        self.num_key_requests = 0
        self.url = ""
        self.slash = ""
        """What the issuer ends in, after the URL."""
        super().__init__(self._app())

    @property
    def issuer(self) -> str:
        return self.url + self.slash

    def rotate(self) -> None:
        self.keys = [RSAKey.generate_key(2048, parameters={"kid": secrets.token_hex(4), "use": "sig"})]

    def authorize(self, address: str) -> dict[str, str]:
        """What the browser brings back, its user having said yes."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self.codes[code] = asked
        return {"code": code, "state": asked["state"], "iss": self.issuer}

    def come_back(self, address: str) -> str:
        return f"{parse_qs(urlsplit(address).query)['redirect_uri'][0]}?{urlencode(self.authorize(address))}"

    def _token(self, asked: dict[str, str]) -> str:
        now = int(time.time())
        said = {"iss": self.issuer, "aud": asked["client_id"], "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims = {name: value for name, value in (said | self.claims).items() if value is not None}
        header = {"alg": "RS256", "kid": self.keys[0].kid} | self.header
        if self.unsigned or self.secret:
            parts = [_base64(json.dumps(part).encode()) for part in (header, claims)]
            signature = hmac.digest(self.secret, ".".join(parts).encode(), "sha256") if self.secret else b""
            return ".".join([*parts, _base64(signature)])
        return jwt.encode(header, claims, self.signed_by or self.keys[0], algorithms=["RS256"])

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/.well-known/openid-configuration")
        async def discover() -> dict[str, str]:
            paths = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "jwks"}
            return {"issuer": self.issuer, **{name: f"{self.url}/{path}" for name, path in paths.items()}}

        @app.get("/jwks")
        async def jwks() -> dict[str, Any]:
            self.num_key_requests += 1
            return KeySet(self.keys).as_dict(private=False)

        @app.post("/token")
        async def token(request: Request) -> Response:
            form = {name: str(value) for name, value in (await request.form()).items()}
            asked = self.codes.pop(form.get("code", ""), None)  # A code serves once.
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            challenge = _base64(digest)
            if asked is None or challenge != asked["code_challenge"] or form["redirect_uri"] != asked["redirect_uri"]:
                return JSONResponse({"error": "invalid_grant"}, status_code=400)
            return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": self._token(asked)})

        return app


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
