"""Starting and stopping the processes, `make run-local` and `helm test`."""
