"""What says how sure a number is: resamples of the images, and intervals that cross them with the seeds."""
