"""How to reach an object storage service, and what its failures mean, in one line each."""

import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from championship_sr.store.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SCHEMES = ("s3", "gs")
# each request: server errors, refused and lost connections; a quarter of a minute in all if they answer at once
RETRY: "RetryConfig" = {
    "max_retries": 10,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=15), "base": 2.5},
}
CLIENT: "ClientConfig" = {"connect_timeout": "10s", "read_timeout": "2min", "timeout": "10min"}
# any of them lets obstore find credentials of its own
S3_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)


class Lost(StoreError):
    """A request that failed although it may succeed when it is made again."""


def connect(url: str) -> Any:
    """The objects under the URL, as obstore has them.

    raises  ConfigError for an invalid URL, or if the library or credentials are missing
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES or not rest.partition("/")[0]:
        raise ConfigError(f"{url}: expected s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise ConfigError(f"{url}: object storage needs extra packages: pip install 'championship-sr[cloud]'") from None
    endpoint = _endpoint(scheme)
    options = _s3_options(url, endpoint) if scheme == "s3" else {}
    client: ClientConfig = {**CLIENT, "allow_http": endpoint.startswith("http://")}
    try:
        return from_url(url, client_options=client, retry_config=RETRY, **options)
    except (BaseError, ValueError) as error:
        raise ConfigError(f"{url}: {_first_line(error)}") from None


def _endpoint(scheme: str) -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if scheme == "s3" else ("GOOGLE_BASE_URL",)
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _s3_options(url: str, endpoint: str) -> dict[str, Any]:
    options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if any(os.environ.get(name) for name in S3_CREDENTIALS):
        return options
    # boto3 knows profiles, single sign-on and a machine's own role, which obstore does not
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    if session.get_credentials() is None:
        raise ConfigError(_no_credentials(url))
    return {**options, "credential_provider": Boto3CredentialProvider(session)}


def _no_credentials(url: str) -> str:
    if url.startswith("s3"):
        ways = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public one AWS_SKIP_SIGNATURE=true"
        )
    else:
        ways = "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login"
    return f"{url}: no credentials found: {ways}"


def explained(error: BaseException, url: str) -> Exception:
    """What the failure means, in one line."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(error)
    bucket = url.partition("://")[2].partition("/")[0]
    endpoint = _endpoint(url.partition(":")[0])
    where = f" at {endpoint}" if endpoint else ""
    if "169.254.169.254" in text or "token request" in text:
        return ConfigError(_no_credentials(url))
    if no_bucket(text):
        return StoreError(f"{url}: there is no bucket {bucket}{where}; create it, or correct the URL")
    if re.search(r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|configured region", text):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return StoreError(f"{url}: the bucket is not in the region {region}; set AWS_REGION to the bucket's region")
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        code = re.search(r"<Code>(\w+)</Code>", text)
        why = code.group(1) if code else type(error).__name__.removesuffix("Error")
        if why == "RequestTimeTooSkewed":
            return StoreError(
                f"{url}: refused ({why}): this machine's clock differs too much from the server's{where}; correct it"
            )
        return StoreError(f"{url}: refused ({why}): these credentials may not do this in the bucket {bucket}{where}")
    if isinstance(error, FileNotFoundError):
        return StoreError(f"{url}: no such object")
    if "error sending request" in text:
        tried = re.search(r"after \d+ retries", text)
        how_often = f" {tried.group()}" if tried else ""
        return Lost(f"{url}: cannot reach {endpoint or 'the service'}{how_often}; correct the endpoint, or try later")
    parts = [re.search(rf"{begin}([^<]+)", text) for begin in (r"status code: (?=\d)", "<Code>", "<Message>")]
    said = [" ".join(part.group(1).split()) for part in parts if part]
    if len(said) == len(parts):
        status, name, message = said
        return Lost(f"{url}: {status.partition(':')[0]}, {name}: {message}")
    return Lost(f"{url}: {_first_line(error)}")


def no_bucket(text: str) -> bool:
    """True if the message says that the bucket itself isn't there."""
    return "NoSuchBucket" in text or "The specified bucket does not exist" in text


def _first_line(error: BaseException) -> str:
    """The text without the tags of a web page."""
    return " ".join(re.sub(r"<[^>]*>", " ", str(error).strip().partition("\n")[0]).split())[:300]
