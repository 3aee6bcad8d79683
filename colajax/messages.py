"""Protocol buffers of others, read by the fields that are declared here.

Generated code asks for a protobuf as new as what generated it, and is in no package where the schema is in none.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SCALARS = {
    "float": 2, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "bytes": 12, "uint32": 13,
}  # fmt: skip


def message_class(schema: str, name: str) -> type:
    """The class of one message.

    schema: a line a message, `Message: type field number, type* field number, type field=default number, ...`; * where
        it is repeated. Enumerations are int32; fields that are not declared are passed over.
    """
    file = descriptor_pb2.FileDescriptorProto(name="colajax.proto", package="colajax", syntax="proto2")
    for line in schema.strip().splitlines():
        message_name, _, fields = line.partition(": ")
        message = file.message_type.add(name=message_name)
        for kind, field, number in (field.split() for field in fields.split(", ")):
            field, _, default = field.partition("=")
            added = message.field.add(name=field, number=int(number), label=3 if kind.endswith("*") else 1)
            kind = kind.rstrip("*")
            added.type = _SCALARS.get(kind, 11)
            if kind not in _SCALARS:
                added.type_name = f".colajax.{kind}"
            if default:
                added.default_value = default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"colajax.{name}"))
