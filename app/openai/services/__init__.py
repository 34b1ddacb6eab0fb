"""From the bodies of ``/v1`` to native requests, and back."""
