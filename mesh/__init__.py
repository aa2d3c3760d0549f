"""What all four services stand on: settings, errors, channels, servers, lifecycle, telemetry.

It knows gRPC and OpenTelemetry; it knows nothing of what any one service does.
"""

from __future__ import annotations

from mesh.rpc import polling as polling  # first: it must run before grpc is loaded
