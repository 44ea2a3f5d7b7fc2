"""The public copy with the lowest worst case: every image moved towards one other class, through random filters."""
