"""The values that services exchange, with their bounds and their mapping to and from protobuf.

Each value is defined here once and used by every service. A module holds one concept: the value
itself and its `…_to_proto` and `…_from_proto` functions. Values that only one service knows, and
the calls themselves (stubs, servicers, streams), do not belong here.
"""
