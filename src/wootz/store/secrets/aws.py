"""AWS Secrets Manager, by the identity of the machine: ``aws:NAME`` or ``aws:NAME#KEY`` (a field of a JSON secret).

Nothing is configured to sign in with. botocore gets temporary credentials (access id, secret key, session token) from
the metadata service of the machine (IMDSv2), of the container (ECS, EKS Pod Identity) or for a service account's token
(EKS IRSA), and anew before they end. Keys in the environment or in files are not looked for: whoever copies them has
them for good.

Reading takes two permissions, ``secretsmanager:GetSecretValue`` on the secret and ``kms:Decrypt`` on its key. Readers
ask for AWSCURRENT and never name a version. AWS' version ids are no numbers; a version here is the second it was made.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from typing import Any

from wootz.core import ConfigError, MissingExtraError
from wootz.core.secrets import Secret

TEMPORARY = ("assume-role-with-web-identity", "container-role", "iam-role")
"""botocore's ways to credentials that end by themselves."""
CONNECT_SECONDS, READ_SECONDS = 2.0, 5.0


class AwsSecrets:
    def __init__(self) -> None:
        self._client = _client()
        self._one_at_a_time = threading.Lock()

    def current(self, name: str) -> Secret:
        from botocore.exceptions import BotoCoreError, ClientError

        secret, _, key = name.partition("#")
        try:
            with self._one_at_a_time:
                answer = self._client.get_secret_value(SecretId=secret, VersionStage="AWSCURRENT")
        except ClientError as error:
            raise ConfigError(_refusal(error.response.get("Error", {}), secret)) from None
        except BotoCoreError as error:
            raise ConfigError(f"AWS can't be asked ({type(error).__name__})") from None
        value = answer.get("SecretString")
        if key:
            value = _field(value, key)
        if not isinstance(value, str):
            raise ConfigError(f'AWS has no text "{key or secret}" in {secret}')
        made = answer.get("CreatedDate")
        return Secret(value, int(made.timestamp()) if made is not None else None)

    def count_uses(self, name: str, uses: Mapping[int, int], used_by: str) -> None:
        """Nothing to do: the request's record names the version, and CloudTrail has who read it."""


def _client() -> Any:
    try:
        from botocore.config import Config
        from botocore.session import get_session
        from botocore.utils import IMDSRegionProvider
    except ImportError:
        raise MissingExtraError("AWS Secrets Manager", "aws", "botocore") from None
    session = get_session()
    chain = session.get_component("credential_provider")
    for provider in list(chain.providers):
        if provider.METHOD not in TEMPORARY:
            chain.remove(provider.METHOD)
    if session.get_credentials() is None:
        hint = "give the machine, the task or the service account a role; static keys are not used"
        raise ConfigError("no temporary credentials of AWS here", hint=hint)
    region = session.get_config_variable("region") or IMDSRegionProvider(session).provide()
    if region is None:
        raise ConfigError("which region of AWS?", hint="set AWS_REGION")
    options = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries={"total_max_attempts": 2})
    return session.create_client("secretsmanager", region_name=region, config=options)


def _refusal(error: Mapping[str, Any], secret: str) -> str:
    """What was not permitted, and nothing else of what AWS said."""
    code, said = error.get("Code", "failed"), str(error.get("Message", ""))
    if code == "AccessDeniedException":
        # With the value permitted and its key not, AWS speaks of KMS, sometimes without naming the action.
        lacks = "kms:Decrypt" if re.search(r"\bkms\b", said, re.IGNORECASE) else "secretsmanager:GetSecretValue"
        return f"AWS does not permit it: the role lacks {lacks} for {secret}"
    if code == "ResourceNotFoundException":
        return f"AWS has no secret {secret}, or no value in it yet"
    return f"AWS refused ({code})"


def _field(text: Any, key: str) -> Any:
    try:
        return json.loads(text)[key]
    except (ValueError, KeyError, TypeError):
        return None
