"""A bucket of a server that speaks S3, with a model in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Bucket:
    """A bucket with a model under ``models/it/``, and the client that fills it."""

    client: Any
    url: str = "s3://bucket/models/it"

    def put(self, name: str, content: bytes) -> None:
        """Put an object beside the model's."""
        self.client.put_object(Bucket="bucket", Key=f"models/it/{name}", Body=content)

    def delete(self, name: str) -> None:
        """Delete one of the model's objects."""
        self.client.delete_object(Bucket="bucket", Key=f"models/it/{name}")

    def publish(self) -> None:
        """Let everyone read the objects, without a signature."""
        for entry in self.client.list_objects_v2(Bucket="bucket")["Contents"]:
            self.client.put_object_acl(Bucket="bucket", Key=entry["Key"], ACL="public-read")
