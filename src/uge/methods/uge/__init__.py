"""The method of the paper: a generator trained by gradient matching, feature distance and undistillation."""
