"""The committed stubs are those that the .proto files generate, and hold the whole of CRI v1 and of NRI."""

from proto import api_pb2, nri_pb2
from proto.generate import stale


def test_stubs_are_current() -> None:
    assert stale() == []


def test_all_rpcs_are_there() -> None:
    services = api_pb2.DESCRIPTOR.services_by_name
    assert len(services["RuntimeService"].methods) == 37
    assert len(services["ImageService"].methods) == 6
    assert api_pb2.DESCRIPTOR.package == "runtime.v1"


def test_field_numbers_that_clients_depend_on() -> None:
    messages = api_pb2.DESCRIPTOR.message_types_by_name
    assert messages["ImageSpec"].fields_by_name["user_specified_image"].number == 18
    assert messages["ContainerConfig"].fields_by_name["stop_signal"].number == 18
    assert messages["LinuxContainerSecurityContext"].fields_by_name["seccomp"].number == 15
    assert api_pb2.SIGNAL_SIGTERM == 23


def test_names_that_nri_plugins_call() -> None:
    services = nri_pb2.DESCRIPTOR.services_by_name
    assert nri_pb2.DESCRIPTOR.package == "nri.pkg.api.v1alpha1"
    assert [(name, len(service.methods)) for name, service in services.items()] == [("Runtime", 2), ("Plugin", 18)]
    messages = nri_pb2.DESCRIPTOR.message_types_by_name
    assert messages["ContainerAdjustment"].fields_by_name["CDI_devices"].number == 8
    assert messages["LinuxContainerAdjustment"].fields_by_name["memory_policy"].number == 12
    assert (nri_pb2.VALIDATE_CONTAINER_ADJUSTMENT, nri_pb2.MemoryPolicy) == (14, 40)
