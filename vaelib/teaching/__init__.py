"""What the notebooks need beside the models: pictures, exercises, scales, a stand-in data set."""
