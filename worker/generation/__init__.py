"""From a request for pictures to what A1111 is asked, in turn, and the check of its answer."""
