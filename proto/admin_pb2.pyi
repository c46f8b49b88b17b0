from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Credentials(_message.Message):
    __slots__ = ("username", "password")
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    username: str
    password: str
    def __init__(self, username: _Optional[str] = ..., password: _Optional[str] = ...) -> None: ...

class PullImageRequest(_message.Message):
    __slots__ = ("reference", "credentials")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    reference: str
    credentials: Credentials
    def __init__(self, reference: _Optional[str] = ..., credentials: _Optional[_Union[Credentials, _Mapping]] = ...) -> None: ...

class ImportImagesRequest(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class ImportImagesResponse(_message.Message):
    __slots__ = ("image_ids",)
    IMAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    image_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, image_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportImagesRequest(_message.Message):
    __slots__ = ("references", "path", "format")
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    references: _containers.RepeatedScalarFieldContainer[str]
    path: str
    format: str
    def __init__(self, references: _Optional[_Iterable[str]] = ..., path: _Optional[str] = ..., format: _Optional[str] = ...) -> None: ...

class ExportImagesResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TagImageRequest(_message.Message):
    __slots__ = ("reference", "name")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    reference: str
    name: str
    def __init__(self, reference: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class TagImageResponse(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class UntagImageRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UntagImageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AddRootfsRequest(_message.Message):
    __slots__ = ("name", "directory")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    name: str
    directory: str
    def __init__(self, name: _Optional[str] = ..., directory: _Optional[str] = ...) -> None: ...

class AddRootfsResponse(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class CommitContainerRequest(_message.Message):
    __slots__ = ("container_id", "reference", "entrypoint", "cmd", "env", "working_dir", "user")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    ENTRYPOINT_FIELD_NUMBER: _ClassVar[int]
    CMD_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIR_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    reference: str
    entrypoint: _containers.RepeatedScalarFieldContainer[str]
    cmd: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.RepeatedScalarFieldContainer[str]
    working_dir: str
    user: str
    def __init__(self, container_id: _Optional[str] = ..., reference: _Optional[str] = ..., entrypoint: _Optional[_Iterable[str]] = ..., cmd: _Optional[_Iterable[str]] = ..., env: _Optional[_Iterable[str]] = ..., working_dir: _Optional[str] = ..., user: _Optional[str] = ...) -> None: ...

class CommitContainerResponse(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class PushImageRequest(_message.Message):
    __slots__ = ("reference", "credentials", "target")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    reference: str
    credentials: Credentials
    target: str
    def __init__(self, reference: _Optional[str] = ..., credentials: _Optional[_Union[Credentials, _Mapping]] = ..., target: _Optional[str] = ...) -> None: ...

class ExecRequest(_message.Message):
    __slots__ = ("container_id", "cmd", "tty", "stdin", "env", "working_dir", "user", "detach")
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    CMD_FIELD_NUMBER: _ClassVar[int]
    TTY_FIELD_NUMBER: _ClassVar[int]
    STDIN_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIR_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    DETACH_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    cmd: _containers.RepeatedScalarFieldContainer[str]
    tty: bool
    stdin: bool
    env: _containers.RepeatedScalarFieldContainer[str]
    working_dir: str
    user: User
    detach: bool
    def __init__(self, container_id: _Optional[str] = ..., cmd: _Optional[_Iterable[str]] = ..., tty: _Optional[bool] = ..., stdin: _Optional[bool] = ..., env: _Optional[_Iterable[str]] = ..., working_dir: _Optional[str] = ..., user: _Optional[_Union[User, _Mapping]] = ..., detach: _Optional[bool] = ...) -> None: ...

class User(_message.Message):
    __slots__ = ("uid", "gid", "groups")
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    uid: int
    gid: int
    groups: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, uid: _Optional[int] = ..., gid: _Optional[int] = ..., groups: _Optional[_Iterable[int]] = ...) -> None: ...

class ExecResponse(_message.Message):
    __slots__ = ("url",)
    URL_FIELD_NUMBER: _ClassVar[int]
    url: str
    def __init__(self, url: _Optional[str] = ...) -> None: ...

class LeaveExecRequest(_message.Message):
    __slots__ = ("url",)
    URL_FIELD_NUMBER: _ClassVar[int]
    url: str
    def __init__(self, url: _Optional[str] = ...) -> None: ...

class LeaveExecResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemovedContainerRequest(_message.Message):
    __slots__ = ("container_id",)
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    container_id: str
    def __init__(self, container_id: _Optional[str] = ...) -> None: ...

class RemovedContainerResponse(_message.Message):
    __slots__ = ("exit_code",)
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    exit_code: int
    def __init__(self, exit_code: _Optional[int] = ...) -> None: ...

class VerifyImagesRequest(_message.Message):
    __slots__ = ("repair",)
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    repair: bool
    def __init__(self, repair: _Optional[bool] = ...) -> None: ...

class VerifyImagesResponse(_message.Message):
    __slots__ = ("bad_blobs", "bad_layers", "dropped_images", "in_use", "checked")
    BAD_BLOBS_FIELD_NUMBER: _ClassVar[int]
    BAD_LAYERS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_IMAGES_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    bad_blobs: _containers.RepeatedScalarFieldContainer[str]
    bad_layers: _containers.RepeatedScalarFieldContainer[str]
    dropped_images: _containers.RepeatedScalarFieldContainer[str]
    in_use: _containers.RepeatedScalarFieldContainer[str]
    checked: int
    def __init__(self, bad_blobs: _Optional[_Iterable[str]] = ..., bad_layers: _Optional[_Iterable[str]] = ..., dropped_images: _Optional[_Iterable[str]] = ..., in_use: _Optional[_Iterable[str]] = ..., checked: _Optional[int] = ...) -> None: ...

class HoldBuildRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HoldBuildResponse(_message.Message):
    __slots__ = ("build_id", "scratch", "memory", "caches")
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    SCRATCH_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    CACHES_FIELD_NUMBER: _ClassVar[int]
    build_id: str
    scratch: str
    memory: str
    caches: str
    def __init__(self, build_id: _Optional[str] = ..., scratch: _Optional[str] = ..., memory: _Optional[str] = ..., caches: _Optional[str] = ...) -> None: ...

class UseBuildImageRequest(_message.Message):
    __slots__ = ("build_id", "reference")
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    build_id: str
    reference: str
    def __init__(self, build_id: _Optional[str] = ..., reference: _Optional[str] = ...) -> None: ...

class UseBuildImageResponse(_message.Message):
    __slots__ = ("image_id", "config")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    config: bytes
    def __init__(self, image_id: _Optional[str] = ..., config: _Optional[bytes] = ...) -> None: ...

class MountBuildImageRequest(_message.Message):
    __slots__ = ("build_id", "image_id", "writable")
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    build_id: str
    image_id: str
    writable: bool
    def __init__(self, build_id: _Optional[str] = ..., image_id: _Optional[str] = ..., writable: _Optional[bool] = ...) -> None: ...

class MountBuildImageResponse(_message.Message):
    __slots__ = ("mount_id", "directory")
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    mount_id: str
    directory: str
    def __init__(self, mount_id: _Optional[str] = ..., directory: _Optional[str] = ...) -> None: ...

class UnmountBuildImageRequest(_message.Message):
    __slots__ = ("build_id", "mount_id")
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    build_id: str
    mount_id: str
    def __init__(self, build_id: _Optional[str] = ..., mount_id: _Optional[str] = ...) -> None: ...

class UnmountBuildImageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CommitBuildRequest(_message.Message):
    __slots__ = ("build_id", "image_id", "container_id", "mount_id", "excluded", "config", "history", "created", "references")
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    MOUNT_ID_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    build_id: str
    image_id: str
    container_id: str
    mount_id: str
    excluded: _containers.RepeatedScalarFieldContainer[str]
    config: bytes
    history: _containers.RepeatedScalarFieldContainer[bytes]
    created: int
    references: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, build_id: _Optional[str] = ..., image_id: _Optional[str] = ..., container_id: _Optional[str] = ..., mount_id: _Optional[str] = ..., excluded: _Optional[_Iterable[str]] = ..., config: _Optional[bytes] = ..., history: _Optional[_Iterable[bytes]] = ..., created: _Optional[int] = ..., references: _Optional[_Iterable[str]] = ...) -> None: ...

class CommitBuildResponse(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class PruneBuildCacheRequest(_message.Message):
    __slots__ = ("dry",)
    DRY_FIELD_NUMBER: _ClassVar[int]
    dry: bool
    def __init__(self, dry: _Optional[bool] = ...) -> None: ...

class PruneBuildCacheResponse(_message.Message):
    __slots__ = ("images", "caches", "bytes")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    CACHES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    images: int
    caches: int
    bytes: int
    def __init__(self, images: _Optional[int] = ..., caches: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class ImageProgress(_message.Message):
    __slots__ = ("item", "stage", "current", "total", "done", "image_ids")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    item: str
    stage: str
    current: int
    total: int
    done: bool
    image_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item: _Optional[str] = ..., stage: _Optional[str] = ..., current: _Optional[int] = ..., total: _Optional[int] = ..., done: _Optional[bool] = ..., image_ids: _Optional[_Iterable[str]] = ...) -> None: ...
