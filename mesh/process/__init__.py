"""The process around a service: settings, start and drain, garbage collection, CPU scheduling."""
