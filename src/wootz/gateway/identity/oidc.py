"""Signing in through an identity provider: OpenID Connect's authorization code flow with PKCE.

One sign-in is one row (`SignInRow`): `begin` writes it and sends the browser away, `finish` takes it out, whoever
wins, before it asks for anything. So a state serves once, on whichever replica it comes back to. What each part is for:

- *state*, together with a cookie of the browser that began: nobody can make somebody else's browser sign in as them.
- *PKCE*: a code that was seen on its way is worth nothing without the verifier, which never leaves us.
- *nonce*: an id token that was made for another sign-in is refused.
- *the id token's signature*, by a key of the provider's (fetched again when it names one that is new), by an algorithm
  of `ALGORITHMS` only: ``none`` and signatures by a shared secret are refused whatever the token says.
- *issuer, audience, times*: it is from that provider, for us, for now. The issuer is what the provider's document says,
  to the letter; the config may lack its final slash (Auth0's has one).

Sources: OpenID Connect Core 1.0, sections 3.1.2 and 3.1.3.7; RFC 7636; RFC 9700 (best current practice); RFC 9207.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from sqlalchemy import delete
from sqlalchemy.orm import Mapped, mapped_column

from wootz.core import AuthenticationError, UnavailableError, resolve_secret
from wootz.core.sections import OidcConfig
from wootz.store import Base, Database, UtcDateTime

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA"]
SIGN_IN_MINUTES = 10
CALLBACK = "/login/oidc/callback"
KEYS_KEPT_SECONDS = 3600.0
NEW_KEYS_AFTER_SECONDS = 10.0
"""For an unknown key id the provider is asked again, but no more often: the id is whatever a stranger wrote."""
MAX_ANSWER_BYTES = 512 * 1024
TIMEOUT_SECONDS = 10.0


class SignInRow(Base):
    __tablename__ = "sign_ins"

    state_hash: Mapped[str] = mapped_column(primary_key=True)
    browser_hash: Mapped[str]
    nonce: Mapped[str]
    verifier: Mapped[str]
    next: Mapped[str]
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True)
class Claims:
    """Who the provider says it is."""

    subject: str
    """Issuer, without a final slash, and subject."""
    name: str
    groups: list[str]


class Oidc:
    def __init__(
        self,
        config: OidcConfig,
        database: Database,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self._database = config, database
        self._wall, self._clock = wall, clock
        self._provider: dict[str, Any] | None = None
        self._keys: KeySet | None = None
        self._keys_at = 0.0
        self._asking = asyncio.Lock()

    @property
    def redirect_uri(self) -> str:
        return self.config.console_url + CALLBACK

    async def begin(self, next: str) -> tuple[str, str]:
        """Where to send the browser, and what its cookie must say when it comes back."""
        provider = await self._discover()
        state, browser, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(4))
        now = datetime.fromtimestamp(self._wall(), UTC)
        async with self._database.session() as sql:
            await sql.execute(delete(SignInRow).where(SignInRow.expires_at < now))
            sql.add(
                SignInRow(
                    state_hash=_hash(state), browser_hash=_hash(browser), nonce=nonce, verifier=verifier, next=next,
                    expires_at=now + timedelta(minutes=SIGN_IN_MINUTES),
                )
            )  # fmt: skip
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": self.config.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": " ".join(self.config.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        address = provider["authorization_endpoint"]
        return f"{address}{'&' if '?' in address else '?'}{urlencode(asked)}", browser

    async def finish(self, *, state: str, browser: str, code: str, issuer: str | None) -> tuple[Claims, str]:
        """Who came back, and where they wanted to go. Raises `AuthenticationError` for everything that is not right."""
        now = datetime.fromtimestamp(self._wall(), UTC)
        taken = delete(SignInRow).where(SignInRow.state_hash == _hash(state)).returning(SignInRow)
        async with self._database.session() as sql:
            row = (await sql.scalars(taken)).one_or_none()
        if row is None or row.expires_at < now or not hmac.compare_digest(row.browser_hash, _hash(browser)):
            raise AuthenticationError("this sign-in was not begun in this browser, or is over", hint="sign in again")
        named = (await self._discover())["issuer"]
        if issuer is not None and issuer != named:  # RFC 9207: another provider's answer, mixed up.
            raise AuthenticationError("this sign-in was answered by another identity provider")
        token = await self._redeem(code, row.verifier)
        claims = await self._verify(token, row.nonce)
        return self._who(claims), row.next

    # --- the provider ---------------------------------------------------------------------------------------------

    async def _redeem(self, code: str, verifier: str) -> str:
        """The id token for a code."""
        provider, config = await self._discover(), self.config
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": verifier,
            "client_id": config.client_id,
        }
        secret = resolve_secret(config.client_secret, used_by="identity.oidc") if config.client_secret else None
        auth = httpx.BasicAuth(config.client_id, secret) if secret else None
        status, answer = await self._ask("POST", provider["token_endpoint"], data=form, auth=auth)
        if status != 200 or not isinstance(token := answer.get("id_token"), str):
            raise AuthenticationError("the identity provider did not accept this sign-in", hint="sign in again")
        return token

    async def _verify(self, token: str, nonce: str) -> dict[str, Any]:
        try:
            signed = jws.extract_compact(token.encode())
            header = signed.headers()
            if header.get("alg") not in ALGORITHMS:
                raise AuthenticationError("the id token is not signed by an algorithm that proves its origin")
            keys = await self._key_set(header.get("kid"))
            verified = jws.deserialize_compact(token.encode(), keys, algorithms=ALGORITHMS)
            claims = json.loads(verified.payload)
        except (JoseError, ValueError):
            raise AuthenticationError("the id token's signature is not the identity provider's") from None
        issuer = (await self._discover())["issuer"]
        wrong = self._wrong_claim(claims, issuer, nonce) if isinstance(claims, dict) else "form is no token's"
        if wrong is not None:
            raise AuthenticationError(f"the id token was refused: its {wrong}")
        return claims

    def _wrong_claim(self, claims: dict[str, Any], issuer: str, nonce: str) -> str | None:
        now, leeway = self._wall(), self.config.leeway_seconds
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if claims.get("iss") != issuer:
            return "issuer is another"
        if self.config.client_id not in audiences:
            return "audience is another"
        if claims.get("azp", self.config.client_id) != self.config.client_id or (
            len(audiences) > 1 and "azp" not in claims
        ):
            return "authorized party is another"
        until: Any = claims.get("exp")
        since: list[Any] = [claims.get("iat"), claims.get("nbf", claims.get("iat"))]
        if not all(isinstance(moment, int | float) and math.isfinite(moment) for moment in (until, *since)):
            return "times are missing"
        if now > until + leeway:
            return "time is over"
        if any(moment > now + leeway for moment in since):
            return "time has not come"
        if not isinstance(claims.get("nonce"), str) or not hmac.compare_digest(
            claims["nonce"].encode(), nonce.encode()
        ):
            return "nonce is another sign-in's"
        return None if isinstance(claims.get("sub"), str) and claims["sub"] else "subject is missing"

    def _who(self, claims: dict[str, Any]) -> Claims:
        name = claims.get(self.config.name_claim)
        if not isinstance(name, str) or not name:
            raise AuthenticationError(f'the identity provider did not tell the claim "{self.config.name_claim}"')
        if self.config.name_claim == "email" and claims.get("email_verified") is not True:
            raise AuthenticationError("the identity provider has not verified this email address")
        groups = claims.get(self.config.groups_claim) or []
        groups = [group for group in groups if isinstance(group, str)] if isinstance(groups, list) else []
        return Claims(f"{self.config.issuer}|{claims['sub']}", name, groups)

    async def _discover(self) -> dict[str, Any]:
        async with self._asking:
            if self._provider is None:
                status, found = await self._ask("GET", f"{self.config.issuer}/.well-known/openid-configuration")
                endpoints = ("authorization_endpoint", "token_endpoint", "jwks_uri")
                if status != 200 or not all(isinstance(found.get(name), str) for name in ("issuer", *endpoints)):
                    raise UnavailableError("the identity provider tells nothing of itself", code="oidc_unavailable")
                if found["issuer"].removesuffix("/") != self.config.issuer:
                    raise UnavailableError(
                        "the identity provider calls itself by another name", code="oidc_unavailable"
                    )
                secure = self.config.issuer.startswith("https://")
                if secure and not all(found[name].startswith("https://") for name in endpoints):
                    raise UnavailableError("the identity provider has addresses without TLS", code="oidc_unavailable")
                self._provider = found
        return self._provider

    async def _key_set(self, key_id: Any) -> KeySet:
        """With this key, if the provider has it. What is kept is asked for again when it is old or lacks the key."""
        provider = await self._discover()
        async with self._asking:
            age = self._clock() - self._keys_at
            known = self._keys is not None and any(key.kid == key_id for key in self._keys.keys)
            stale = age > KEYS_KEPT_SECONDS or (not known and age > NEW_KEYS_AFTER_SECONDS)
            if self._keys is None or stale:
                status, found = await self._ask("GET", provider["jwks_uri"])
                if status != 200:
                    raise UnavailableError("the identity provider's keys can't be had", code="oidc_unavailable")
                # Never a shared secret: whoever knows it could sign, and a public key must not serve as one.
                public = [key for key in found.get("keys", []) if isinstance(key, dict) and key.get("kty") != "oct"]
                self._keys, self._keys_at = KeySet.import_key_set({"keys": public}), self._clock()
            return self._keys

    async def _ask(self, method: str, url: str, **options: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON object; `UnavailableError` for whatever is neither."""
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False) as http:
                async with http.stream(method, url, headers={"accept": "application/json"}, **options) as answer:
                    body = b""
                    async for part in answer.aiter_bytes():
                        body += part
                        if len(body) > MAX_ANSWER_BYTES:
                            raise UnavailableError("the identity provider says too much", code="oidc_unavailable")
            found = json.loads(body)
        except (httpx.HTTPError, ValueError):
            raise UnavailableError("the identity provider is out of reach", code="oidc_unavailable") from None
        return answer.status_code, found if isinstance(found, dict) else {}


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
