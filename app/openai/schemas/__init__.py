"""Bodies and answers under ``/v1``, as the official client writes and reads them."""
