// Command kubelet prints /metrics/cadvisor as a node's kubelet does: the kubelet's own cAdvisor over the cgroups of
// this machine, behind the kubelet's own HTTP server (as on its read-only port). It starts no pods.
//
// Not real is the container runtime: its socket is answered here, with what --pods says of each container's id (image,
// process, and the labels that the kubelet gives to containers and containerd's CRI plugin to sandboxes). cAdvisor asks
// it by its own containerd client.
//
// Beside the flags here there are cAdvisor's own, such as --housekeeping_interval.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	cadvisorapi "github.com/google/cadvisor/info/v1"
	cadvisorv2 "github.com/google/cadvisor/info/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	kubelettypes "k8s.io/kubelet/pkg/types"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/server"
)

type container struct {
	ID, Name, Image string // a sandbox has no name
	Pid             uint32
}

type pod struct {
	Namespace, Name string
	UID             string
	Containers      []container
}

// podsFile is read anew for each question: containers come and go.
type podsFile string

func (f podsFile) pods() ([]pod, error) {
	text, err := os.ReadFile(string(f))
	if err != nil {
		return nil, err
	}
	var out []pod
	return out, json.Unmarshal(text, &out)
}

// find is what containerd says of an id that it does not know, too.
func (f podsFile) find(id string) (pod, container, error) {
	pods, err := f.pods()
	if err != nil {
		return pod{}, container{}, status.Error(codes.Internal, err.Error())
	}
	for _, p := range pods {
		for _, one := range p.Containers {
			if one.ID == id {
				return p, one, nil
			}
		}
	}
	return pod{}, container{}, status.Errorf(codes.NotFound, "container %q: not found", id)
}

// The three services of containerd that cAdvisor asks.
type containersService struct {
	containersapi.UnimplementedContainersServer
	podsFile
}

type tasksService struct {
	tasksapi.UnimplementedTasksServer
	podsFile
}

type versionService struct {
	versionapi.UnimplementedVersionServer
}

func (s containersService) Get(_ context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	p, found, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	labels := map[string]string{
		kubelettypes.KubernetesPodNameLabel:      p.Name,
		kubelettypes.KubernetesPodNamespaceLabel: p.Namespace,
		kubelettypes.KubernetesPodUIDLabel:       p.UID,
		"io.cri-containerd.kind":                 "sandbox",
	}
	if found.Name != "" {
		labels[kubelettypes.KubernetesContainerNameLabel] = found.Name
		labels["io.cri-containerd.kind"] = "container"
	}
	return &containersapi.GetContainerResponse{Container: &containersapi.Container{
		ID: found.ID, Labels: labels, Image: found.Image, Spec: &anypb.Any{Value: []byte("{}")},
	}}, nil
}

func (s tasksService) Get(_ context.Context, r *tasksapi.GetRequest) (*tasksapi.GetResponse, error) {
	_, found, err := s.find(r.ContainerID)
	if err != nil {
		return nil, err
	}
	return &tasksapi.GetResponse{Process: &tasktypes.Process{
		ContainerID: found.ID, ID: found.ID, Pid: found.Pid, Status: tasktypes.Status_RUNNING,
	}}, nil
}

func (versionService) Version(context.Context, *emptypb.Empty) (*versionapi.VersionResponse, error) {
	return &versionapi.VersionResponse{Version: "v2.2.0", Revision: "none"}, nil
}

// host is the kubelet that the server asks; a question that is not answered here ends in a panic.
type host struct {
	server.HostInterface
	podsFile
	cadvisor cadvisor.Interface
	machine  *cadvisorapi.MachineInfo
}

func (h *host) GetVersionInfo() (*cadvisorapi.VersionInfo, error)       { return h.cadvisor.VersionInfo() }
func (h *host) GetCachedMachineInfo() (*cadvisorapi.MachineInfo, error) { return h.machine, nil }
func (h *host) SyncLoopHealthCheck(*http.Request) error                 { return nil }

func (h *host) GetRequestedContainersInfo(name string, options cadvisorv2.RequestOptions) (map[string]*cadvisorapi.ContainerInfo, error) {
	return h.cadvisor.GetRequestedContainersInfo(name, options)
}

// GetPodByCgroupfs knows a pod's own cgroup by the name that the kubelet gives it.
func (h *host) GetPodByCgroupfs(name string) (*v1.Pod, bool) {
	uid, is := strings.CutPrefix(path.Base(name), "pod")
	pods, err := h.pods()
	if err != nil || !is {
		return nil, false
	}
	for _, p := range pods {
		if p.UID == uid {
			return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}}, true
		}
	}
	return nil, false
}

func run() error {
	pods := flag.String("pods", "", "file with the pods of this node (required)")
	cgroupRoot := flag.String("cgroup-root", "/", "as the kubelet's: pods are looked for under its kubepods")
	rootDir := flag.String("root-dir", "", "the kubelet's directory, and the runtime's socket (required)")
	listen := flag.String("listen", "127.0.0.1:10255", "address of the HTTP server")
	klog.InitFlags(nil)
	flag.Parse()
	if *pods == "" || *rootDir == "" {
		return fmt.Errorf("--pods and --root-dir are required")
	}
	go func() {
		// The parent holds the other end of a pipe: when it dies, by whatever means, so do we.
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	known := podsFile(*pods)

	socket, err := filepath.Abs(filepath.Join(*rootDir, "containerd.sock"))
	if err != nil {
		return err
	}
	runtime, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	services := grpc.NewServer()
	containersapi.RegisterContainersServer(services, containersService{podsFile: known})
	tasksapi.RegisterTasksServer(services, tasksService{podsFile: known})
	versionapi.RegisterVersionServer(services, versionService{})
	go func() { klog.Fatal(services.Serve(runtime)) }()
	if err := flag.Set("containerd", socket); err != nil {
		return err
	}

	roots := []string{cm.NodeAllocatableRoot(*cgroupRoot, true, "cgroupfs")}
	endpoint := "unix://" + socket
	logger := klog.Background()
	c, err := cadvisor.New(logger, cadvisor.NewImageFsInfoProvider(endpoint), *rootDir, roots, cadvisor.UsingLegacyCadvisorStats(endpoint), true)
	if err != nil {
		return fmt.Errorf("cAdvisor: %w", err)
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("cAdvisor: %w", err)
	}
	machine, err := c.MachineInfo()
	if err != nil {
		return fmt.Errorf("cAdvisor: %w", err)
	}
	handler := server.NewServer(context.Background(), &host{podsFile: known, cadvisor: c, machine: machine}, nil, nil, nil, nil, nil)
	return http.ListenAndServe(*listen, &handler)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubelet:", err)
		os.Exit(1)
	}
}
