"""A client of an OCI registry: digests of images, and artifacts that refer to them.

Follows the OCI distribution specification 1.1. In a registry without its referrers API, such as
Docker's registry 2, an index with the tag `sha256-DIGEST` lists an image's artifacts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
EMPTY = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"

Json = dict[str, Any]


class RegistryError(Exception):
    """The registry refused a request; the message has the request and the answer."""


@dataclass(frozen=True)
class Image:
    """A reference HOST/REPOSITORY:TAG."""

    host: str
    repository: str
    tag: str

    @classmethod
    def parse(cls, reference: str) -> Image:
        """Raises ValueError unless the reference has a host and a tag."""
        match = re.fullmatch(r"([^/]+[.:][^/]*|localhost)/([^:@]+):([\w.-]+)", reference)
        if match is None:
            raise ValueError(f"{reference} must be HOST/REPOSITORY:TAG")
        return cls(*match.groups())


class Registry:
    """One registry, as a context manager. Credentials are those of `docker login`."""

    def __init__(self, host: str) -> None:
        self._host = host
        local = host.partition(":")[0] in ("localhost", "127.0.0.1", "[")
        base = f"{'http' if local else 'https'}://{host}"
        self._client = httpx.Client(base_url=base, timeout=60, follow_redirects=True)
        self._tokens: dict[str, str] = {}

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def digest(self, image: Image) -> tuple[str, str, int]:
        """Digest, media type and size in bytes of an image's manifest. Raises RegistryError."""
        accepted = ", ".join((INDEX, MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
        path = f"/v2/{image.repository}/manifests/{image.tag}"
        response = self._send("GET", path, headers={"accept": accepted})
        digest = f"sha256:{hashlib.sha256(response.content).hexdigest()}"
        return digest, response.headers["content-type"], len(response.content)

    def attach(self, image: Image, artifact_type: str, content: bytes, file: str) -> str:
        """Uploads an artifact that refers to the image; returns its digest.

        Raises RegistryError.
        """
        digest, media_type, size = self.digest(image)
        subject = {"mediaType": media_type, "digest": digest, "size": size}
        layer = self._upload(image.repository, content)
        layer |= {
            "mediaType": artifact_type,
            "annotations": {"org.opencontainers.image.title": file},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": {**self._upload(image.repository, EMPTY), "mediaType": EMPTY_TYPE},
            "layers": [layer],
            "subject": subject,
        }
        text = json.dumps(manifest).encode()
        own = f"sha256:{hashlib.sha256(text).hexdigest()}"
        path = f"/v2/{image.repository}/manifests/{own}"
        headers = {"content-type": MANIFEST}
        response = self._send("PUT", path, content=text, headers=headers)
        if "oci-subject" not in response.headers:
            entry = {"mediaType": MANIFEST, "digest": own, "size": len(text)}
            self._list(image.repository, digest, {**entry, "artifactType": artifact_type})
        return own

    def referrers(self, image: Image) -> list[Json]:
        """The descriptors of the artifacts that refer to an image."""
        digest = self.digest(image)[0]
        response = self._request("GET", f"/v2/{image.repository}/referrers/{digest}")
        if response.status_code == httpx.codes.OK:
            return list(response.json()["manifests"])
        return self._listed(image.repository, digest)

    def artifact(self, repository: str, digest: str) -> bytes:
        """The content of an artifact with one layer."""
        headers = {"accept": MANIFEST}
        manifest = self._send("GET", f"/v2/{repository}/manifests/{digest}", headers=headers).json()
        blob = manifest["layers"][0]["digest"]
        return self._send("GET", f"/v2/{repository}/blobs/{blob}").content

    def _listed(self, repository: str, digest: str) -> list[Json]:
        path = f"/v2/{repository}/manifests/{digest.replace(':', '-')}"
        response = self._request("GET", path, headers={"accept": INDEX})
        return list(response.json()["manifests"]) if response.is_success else []

    def _list(self, repository: str, digest: str, entry: Json) -> None:
        """Replaces the artifacts of the same type in the image's index by this one."""
        others = [
            each
            for each in self._listed(repository, digest)
            if each.get("artifactType") != entry["artifactType"]
        ]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*others, entry]}
        path = f"/v2/{repository}/manifests/{digest.replace(':', '-')}"
        headers = {"content-type": INDEX}
        self._send("PUT", path, content=json.dumps(index).encode(), headers=headers)

    def _upload(self, repository: str, content: bytes) -> Json:
        """Uploads a blob, and returns its digest and size."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        blob = {"digest": digest, "size": len(content)}
        if self._request("HEAD", f"/v2/{repository}/blobs/{digest}").is_success:
            return blob
        started = self._send("POST", f"/v2/{repository}/blobs/uploads/")
        place = urljoin(str(started.url), started.headers["location"])
        where = httpx.URL(place).copy_merge_params({"digest": digest})
        headers = {"content-type": "application/octet-stream"}
        self._send("PUT", str(where), content=content, headers=headers)
        return blob

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        response = self._request(method, path, **options)
        if not response.is_success:
            answer = response.text[:300]
            raise RegistryError(f"{method} {response.url}: {response.status_code} {answer}")
        return response

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Sends a request; after a challenge once more, with a token or with the credentials."""
        headers = {**options.pop("headers", {})}
        scope = path.partition("/v2/")[2].partition("/blobs")[0].partition("/manifests")[0]
        if scope in self._tokens:
            headers["authorization"] = self._tokens[scope]
        response = self._client.request(method, path, headers=headers, **options)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            challenge = response.headers.get("www-authenticate", "")
            self._tokens[scope] = headers["authorization"] = self._authorization(challenge)
            response = self._client.request(method, path, headers=headers, **options)
        return response

    def _authorization(self, challenge: str) -> str:
        """The value of the header that answers a challenge."""
        credentials = _credentials(self._host)
        if not challenge.lower().startswith("bearer"):
            return f"Basic {credentials}"
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        headers = {"authorization": f"Basic {credentials}"} if credentials else {}
        params = {key: fields[key] for key in ("service", "scope") if key in fields}
        response = httpx.get(fields["realm"], params=params, headers=headers, timeout=60)
        if not response.is_success:
            raise RegistryError(f"{fields['realm']}: {response.status_code}; try docker login")
        answer = response.json()
        return f"Bearer {answer.get('token') or answer['access_token']}"


def _credentials(host: str) -> str:
    """The credentials of `docker login` for a registry, in base64; may be empty."""
    folder = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker"))
    file = folder / "config.json"
    if not file.exists():
        return ""
    entry = json.loads(file.read_text()).get("auths", {}).get(host, {})
    if entry.get("auth"):
        return str(entry["auth"])
    user, password = entry.get("username", ""), entry.get("password", "")
    return base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""
